"""Claims of the papers on merging that came after the suite's three, on the same checkpoints, and the suite's own."""

import operator
from dataclasses import dataclass

import pandas as pd

from src.analysis.layerwise import ATTENTION, MLP
from src.experiments.analogies import ANALOGY, PRETRAINED
from src.experiments.course import ENTROPY, EXPERT
from src.modes import MODES
from src.reporting import answers
from src.reporting.claim import Claim, Merged, Quantity, Threshold
from src.reporting.comparison.analogies import ByAnalogy
from src.reporting.comparison.connectivity import SMALL, Barrier
from src.reporting.comparison.course import BEST, LAST, Following, Reading
from src.reporting.comparison.geometry import Spectral
from src.reporting.comparison.layerwise import FIRST, SECOND, Layered
from src.reporting.comparison.mergeability import STRONG, Foretelling
from src.reporting.comparison.merged_models import OfMerged
from src.reporting.comparison.methods import FURTHER
from src.reporting.comparison.mode_claims import CLAIMS as OF_MODES
from src.reporting.comparison.plateau import Plateau
from src.reporting.comparison.studies import OnSubsets, Studied
from src.reporting.methods import Group, Row, missing_command, variant_row
from src.reporting.runs import Runs
from src.reporting.statistics import BySeed, combined

TSV, ISO = "Task Singular Vectors", "No Task Left Behind (Iso)"


@dataclass(frozen=True)
class Gain(Quantity):
    """Accuracy of a method less that of another, on one kind of task vectors, in points."""

    row: Row
    base: Row
    mode: str

    @property
    def title(self) -> str:
        return f"gain of {self.row.title()} over {self.base.title()}, {MODES[self.mode].title}"

    def values(self, runs: Runs) -> pd.Series:
        what, base = ({"metric": "accuracy", **self._group(runs).columns, **r.columns} for r in (self.row, self.base))
        return (100 * (runs.values(**what) - runs.values(**base))).dropna()

    def formulas(self, runs: Runs) -> BySeed:
        what, base = ({"metric": "accuracy", **self._group(runs).columns, **r.columns} for r in (self.row, self.base))
        return answers.percent(combined(operator.sub, answers.formulas(runs, **what), answers.formulas(runs, **base)))

    def commands(self, runs: Runs) -> list[str]:
        group = self._group(runs)
        return [*missing_command(runs, group, self.row), *missing_command(runs, group, self.base)]

    def _group(self, runs: Runs) -> Group:
        return Group(runs.main_tasks, self.mode)


@dataclass(frozen=True)
class OfMode(Merged):
    """Of one kind of task vectors, which the name says."""

    mode: str = "standard"

    @property
    def title(self) -> str:
        return f"{super().title}, {MODES[self.mode].title}"

    def group(self, runs: Runs) -> Group:
        return Group(runs.main_tasks, self.mode)


def _merged(method: str, paper: str = "", metric: str = "accuracy", **options: object) -> Merged:
    return Merged(variant_row(method, **options), (paper, *FURTHER), metric)


def _gain(method: str, mode: str) -> Gain:
    return Gain(variant_row(method), variant_row("sum"), mode)


CLAIMS = (
    Claim("TSV", "TSV-M is better than consensus TA.", (_merged("tsv_m", TSV), _merged("consensus", TSV))),
    Claim(
        "TSV",
        "TSV-M needs no coefficient: at α = 1 it is as good as tuned (within a point).",
        (
            Merged(variant_row("tsv_m"), ("", *FURTHER), "one_accuracy", "TSV-M at α = 1"),
            _merged("tsv_m", TSV),
        ),
        margin=1.0,
    ),
    Claim(
        "TSV",
        "TSV-C keeps 98 % of single-task accuracy.",
        (
            Merged(variant_row("tsv_c"), (TSV, "merging", "8 tasks", "normalised"), "normalised"),
            Threshold(98.0, "98 %"),
        ),
    ),
    Claim(
        "Iso",
        "Iso-C is as good as TSV-M on 8 tasks (within a point).",
        (_merged("iso_c", ISO), _merged("tsv_m", ISO)),
        margin=1.0,
    ),
    Claim("Iso", "Iso-CTS is better than Iso-C.", (_merged("iso_cts", ISO), _merged("iso_c", ISO))),
    Claim("CART", "CART is better than task arithmetic.", (_merged("cart"), _merged("sum"))),
    Claim("WUDI", "WUDI is better than TSV-M.", (_merged("wudi", solver="adam"), _merged("tsv_m"))),
    Claim(
        "WUDI",
        "The closed form of WUDI is at least as good as Adam on its loss (within half a point).",
        (_merged("wudi"), _merged("wudi", solver="adam")),
        margin=0.5,
    ),
    Claim("Fisher", "Fisher merging is better than weight averaging.", (_merged("fisher"), _merged("average"))),
    Claim("RegMean", "RegMean is better than Fisher merging.", (_merged("regmean"), _merged("fisher"))),
    Claim("RegMean++", "RegMean++ is better than RegMean.", (_merged("regmean_plusplus"), _merged("regmean"))),
    Claim("FeatCal", "FeatCal is better than RegMean++.", (_merged("featcal"), _merged("regmean_plusplus"))),
    Claim(
        "the suite",
        "Matching features exactly, for all layers at once, is better than layer by layer (FeatCal).",
        (_merged("tangent_matching"), _merged("featcal")),
    ),
    Claim("EMR", "EMR is at least as good as TALL masks with TA.", (_merged("emr"), _merged("tall_mask"))),
    Claim(
        "DARE", "DARE loses nothing of task arithmetic (within half a point).", (_merged("dare"), _merged("sum")), 0.5
    ),
    Claim("Breadcrumbs", "Breadcrumbs is better than task arithmetic.", (_merged("breadcrumbs"), _merged("sum"))),
    Claim("PCB", "PCB is better than TIES.", (_merged("pcb"), _merged("ties"))),
    Claim("LiNeS", "LiNeS improves task arithmetic.", (_merged("lines"), _merged("sum"))),
    Claim("LiNeS", "LiNeS improves TIES.", (_merged("lines", base="ties"), _merged("ties"))),
    Claim("LiNeS", "LiNeS improves consensus TA.", (_merged("lines", base="consensus"), _merged("consensus"))),
    Claim("SVC", "SVC improves task arithmetic.", (_merged("svc", base="sum"), _merged("sum"))),
    Claim(
        "SVC",
        "SVC improves TSV-M.",
        (_merged("svc", base="tsv_m", alpha=1.0, clip=1.0), _merged("tsv_m")),
    ),
    Claim(
        "the suite",
        "MetaGPT's closed form is weight averaging but for noise (within a point).",
        (_merged("metagpt"), _merged("average")),
        margin=1.0,
    ),
    *(
        Claim(
            "the suite",
            f"{title} helps tangent vectors less than others: they interfere less already.",
            (_gain(method, "standard"), _gain(method, "linear")),
        )
        for method, title in (("tsv_m", "TSV-M"), ("iso_c", "Iso-C"), ("wudi", "WUDI"), ("regmean", "RegMean"))
    ),
    Claim(
        "the suite",
        "Tangent matching is better on tangent vectors, for which it is exact, than on others.",
        tuple(OfMode(variant_row("tangent_matching"), ("", *FURTHER), mode=mode) for mode in ("linear", "standard")),
    ),
    Claim(
        "Iso",
        "Alignment goes with accuracy: SAR and NAI correlate above 0.5 over methods and tasks.",
        (Spectral("correlation", "standard"), Threshold(0.5, "0.5")),
    ),
    Claim(
        "TSV",
        "Singular task interference falls with depth.",
        (Spectral("interference", "standard", half=0), Spectral("interference", "standard", half=1)),
    ),
    Claim(
        "the suite",
        "Tangent vectors interfere less than others, as singular values tell.",
        (Spectral("interference", "standard"), Spectral("interference", "linear")),
    ),
    Claim(
        "the suite",
        "Tangent vectors are of lower rank than others.",
        (Spectral("effective_rank", "standard"), Spectral("effective_rank", "linear")),
    ),
    *(
        Claim(
            where,
            f"Early blocks interfere more than late ones, as features tell, {MODES[mode].title}.",
            (Layered(FIRST, mode), Layered(SECOND, mode)),
        )
        for where, mode in (("LiNeS", "standard"), ("the suite", "linear"))
    ),
    Claim(
        "the suite",
        "Attention interferes less than MLPs, as features tell.",
        (Layered(MLP, "standard"), Layered(ATTENTION, "standard")),
    ),
    Claim(
        "the suite",
        "Models fine-tuned on different tasks are not connected in their joint loss: a barrier is between them.",
        (Barrier("standard"), Threshold(SMALL, f"{SMALL:g} nats")),
    ),
    *(
        Claim(
            where,
            f"By analogy a model does better on a data set that nothing was trained on than {words}, "
            f"{MODES[mode].title}.",
            (ByAnalogy(ANALOGY, mode), ByAnalogy(than, mode)),
        )
        for where, mode, than, words in (
            ("Ilharco", "standard", PRETRAINED, "before fine-tuning"),
            ("Ilharco", "standard", "τ_C", "by the nearest task's vector alone"),
            ("the suite", "standard", "τ_C + τ_B", "by the sum of both vectors"),
            ("the suite", "linear", "τ_C + τ_B", "by the sum of both vectors"),
        )
    ),
    Claim(
        "the suite",
        "Of all tasks added up, linear fine-tuning keeps more of its own predictions (a smaller ξ) than non-linear.",
        (OfMerged("disagreement", "sum"), OfMerged("disagreement", "sum", "linear")),
    ),
    Claim(
        "the suite",
        "Task arithmetic loses less to interference with linear fine-tuning than with non-linear.",
        (OfMerged("interference", "sum"), OfMerged("interference", "sum", "linear")),
    ),
    Claim(
        "Surgery",
        "Surgery makes the representation bias of task arithmetic smaller.",
        (OfMerged("bias", "sum"), OfMerged("bias", "surgery")),
    ),
    Claim(
        "the suite",
        "Entropy makes layer-wise AdaMerging over-confident: its temperature is above 1.",
        (OfMerged("temperature", "adamerging"), Threshold(1.0, "1")),
    ),
    Claim(
        "the suite",
        "Weight averaging is under-confident: its temperature is below 1.",
        (Threshold(1.0, "1"), OfMerged("temperature", "average")),
    ),
    Claim(
        "the suite",
        "One temperature from validation makes the calibration error of task arithmetic smaller.",
        (OfMerged("calibration_error", "sum"), OfMerged("scaled_calibration_error", "sum")),
    ),
    Claim(
        "the suite",
        "SVC makes the coefficient of task arithmetic matter less: more of the grid is within a point of the best.",
        (Plateau("svc", (("base", "sum"),)), Plateau("sum")),
    ),
    *(
        Claim(
            "DisTaC",
            f"Rankings invert {words}: there task arithmetic is better than {title}.",
            (Studied("sum", study), Studied(method, study)),
        )
        for method, title, study, words in (
            ("wudi", "WUDI", "longer", "where one expert is trained 3 times longer"),
            ("wudi", "WUDI", "smoothing", "with low-confidence experts (label smoothing 0.1)"),
            ("emr", "EMR", "smoothing", "with low-confidence experts (label smoothing 0.1)"),
        )
    ),
    Claim(
        "DisTaC",
        "Low confidence of the experts harms merging: TSV-M is worse with label smoothing.",
        (Studied("tsv_m"), Studied("tsv_m", "smoothing")),
    ),
    Claim(
        "arXiv:2508.16082",
        "Experts of a quarter of the length merge as well as those of all of it, by task arithmetic (within a point).",
        (Studied("sum", "quarter"), Studied("sum")),
        margin=1.0,
    ),
    Claim(
        "the suite",
        "On two tasks Iso-C at α = 1 is worse than weight averaging.",
        (OnSubsets("average", 2), OnSubsets("iso_c", 2, "one_normalised")),
    ),
    Claim("AdaRank", "AdaRank is better than layer-wise AdaMerging.", (_merged("adarank"), _merged("adamerging"))),
    Claim(
        "AdaRank",
        "AdaRank: reporting the best evaluation on test adds more than half a point to the last step.",
        (Reading("adarank", BEST), Reading("adarank", LAST)),
        margin=-0.5,
    ),
    Claim("Surgery", "Surgery improves task arithmetic.", (_merged("surgery"), _merged("sum"))),
    Claim(
        "SyMerge",
        "Layer-wise AdaMerging learns more from its experts' labels than from entropy.",
        (_merged("adamerging", loss="expert"), _merged("adamerging")),
    ),
    Claim(
        "SyMerge",
        "Entropy follows the test loss less than the experts' labels do, along layer-wise AdaMerging on either.",
        (Following("adamerging_loss=expert", EXPERT), Following("adamerging", ENTROPY)),
    ),
    Claim(
        "aTLAS",
        "Coefficients of every block learned from labels (aTLAS) are better than layer-wise AdaMerging without them.",
        (_merged("atlas"), _merged("adamerging")),
    ),
    Claim(
        "Mergeability-Bench",
        "No measure of weights alone foretells how well a pair of tasks merges: none correlates with its accuracy by "
        f"{STRONG:g} or more, either way.",
        (Threshold(STRONG, f"{STRONG:g}"), Foretelling("sum")),
    ),
    *OF_MODES,
)
