"""The ledger of claims: verdicts follow intervals over seeds, or with one seed over test images, from results alone."""

import json
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic_results

from src.reporting.claim import Claim, Merged, Threshold, examine, examine_all
from src.reporting.comparison.claims import CLAIMS as LATER_CLAIMS
from src.reporting.concrete.claims import OnUnseen
from src.reporting.ledger import ledger
from src.reporting.methods import variant_row
from src.reporting.papers import offered
from src.reporting.runs import Runs
from src.reporting.statistics import Difference
from src.reporting.tall.claims import ABSOLUTE
from src.reporting.verdict import EQUAL, FAILS, HOLDS, NOT_RUN, UNDECIDED, Comparison, corrected, overall

CLAIMS = offered("claims")
LATER = {*LATER_CLAIMS}  # of papers after the suite's three


def seeds(*values: float) -> pd.Series:
    return pd.Series(values, index=range(1, len(values) + 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path_factory.mktemp("claims")))


def claim(start: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.sentence.startswith(start))


def judged(*of_neighbours: pd.Series, margin: float = 0.0) -> str:
    comparisons = [Comparison(Difference(values), margin, margin or 0.5) for values in of_neighbours]
    return overall([comparison.verdict for comparison in comparisons])


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([seeds(1.0, 1.1, 0.9)], HOLDS),
        ([seeds(-1.0, -1.1, -0.9)], FAILS),
        ([seeds(1.0, -0.5, 0.4)], UNDECIDED),
        ([seeds(0.1, -0.1, 0.05)], EQUAL),
        ([seeds(0.3, 0.31, 0.29)], EQUAL),  # above zero, and no difference that counts
        ([seeds(0.6, 0.6)], HOLDS),
        ([seeds(1.0, 1.1), seeds(1.0, -1.0)], UNDECIDED),
        ([seeds(1.0, -1.0), seeds(-1.0, -1.01)], FAILS),
        ([seeds(1.0, 1.01), seeds(0.0, 0.0)], EQUAL),
        ([seeds(1.0, -1.0), seeds(0.0, 0.0)], UNDECIDED),
        ([], NOT_RUN),
    ],
)
def test_verdicts_over_seeds(differences, verdict):
    assert judged(*differences) == verdict


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (seeds(-0.5, 1.5, 0.6, 0.5), HOLDS),  # above minus the margin
        (seeds(-1.6, -1.59), FAILS),
        (seeds(-0.6, -0.65), EQUAL),
        (seeds(-1.0, -0.7), UNDECIDED),
    ],
)
def test_the_margin_of_a_claim_shifts_what_holds_and_is_what_counts_as_equal(difference, verdict):
    assert judged(difference, margin=1.0) == verdict


@pytest.mark.parametrize("value", [0.1, -3.0, 30.0])
def test_one_seed_without_an_interval_is_undecided_whatever_its_sign(value):
    assert judged(seeds(value)) == UNDECIDED


def test_nothing_counts_as_equal_where_differences_are_not_in_points():
    ratio = Comparison(Difference(seeds(0.3, 0.31, 0.29)), equal_within=None)
    assert ratio.verdict == HOLDS
    assert [q.in_points for q in claim("Eigenfunctions").quantities] == [False, True]
    assert [q.in_points for q in claim("Linearly").quantities] == [True, True]


def test_holm_leaves_what_many_tests_at_once_allow():
    clear, weak = seeds(1.0, 1.001, 0.999), seeds(1.0, 1.1, 0.9)  # p = 3e-7 and 0.003
    comparisons = [Comparison(Difference(values)) for values in (clear, weak)]
    assert corrected(comparisons) == [HOLDS, HOLDS]
    assert corrected([comparisons[0], *comparisons[1:] * 30]) == [HOLDS, *[UNDECIDED] * 30]
    alone = Comparison(Difference(seeds(1.0)))  # no interval, and no test
    assert corrected([*comparisons, alone]) == [HOLDS, HOLDS, UNDECIDED]


def test_the_made_up_results_hold_by_construction(runs):
    """Of the three papers; there are no made-up results of most later methods."""
    verdicts = {claim.sentence: examine(claim, runs).verdict for claim in CLAIMS if claim not in LATER}
    assert {sentence for sentence, verdict in verdicts.items() if verdict != HOLDS} == {
        sentence for sentence, verdict in verdicts.items() if verdict == EQUAL and "within" in sentence
    }


def test_a_claim_against_the_results_does_not_hold(runs):
    turned = Claim("", "turned", claim("Addition, absolute").quantities[::-1])
    assert examine(turned, runs).verdict == FAILS
    ties, arithmetic = (Merged(variant_row("consensus", **options), ABSOLUTE) for options in ({"use_ties": True}, {}))
    close = Claim("", "with a margin", (ties, arithmetic))
    assert examine(close, runs).verdict not in (HOLDS, EQUAL)
    granted = Claim("", "with a margin", close.quantities, margin=2.0)
    assert examine(granted, runs).verdict == EQUAL


def test_differences_are_paired_over_the_seeds_that_have_both(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    (tmp_path / "mini/ViT-Mini/seed_1/disentanglement_linear.json").unlink()
    runs = Runs("mini", "ViT-Mini", tmp_path)
    finding = examine(claim("Linearly fine-tuned"), runs)
    assert list(finding.comparisons[0].difference.values.index) == [2] and finding.verdict == UNDECIDED
    (command,) = finding.missing
    assert command.startswith("python eval_disentanglement.py --finetuning-mode=linear --model=ViT-Mini --seed=1 ")
    line = next(line for line in ledger(examine_all(runs), runs).splitlines() if "Linearly fine-tuned" in line)
    one, other = (quantity.values(runs)[2] for quantity in finding.claim.quantities)
    assert f"ξ non-linear {one:.1f} (n = 1), ξ linear {other:.1f} (n = 1) | {one - other:+.1f} (n = 1)" in line
    assert "**undecided**: one seed, and no accuracy of images" in line


def test_all_numbers_of_a_claim_are_over_the_same_seeds(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2, 3), merges=False)
    (tmp_path / "mini/ViT-Mini/seed_1/addition_posthoc.json").unlink()
    finding = examine(claim("Addition, absolute"), Runs("mini", "ViT-Mini", tmp_path))
    assert [list(values.index) for values in finding.values] == [[2, 3]] * 4
    for seed in (2, 3):
        (tmp_path / f"mini/ViT-Mini/seed_{seed}/addition_linear.json").unlink()
    finding = examine(claim("Addition, absolute"), Runs("mini", "ViT-Mini", tmp_path))  # no seed has both
    assert finding.verdict == NOT_RUN and all(values.empty for values in finding.values)


def without_bits(folder: Path) -> None:
    """Results as they were before they held which images were right."""

    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: strip(item) for name, item in value.items() if name not in ("correct", "control_correct")}

    for file in folder.rglob("*.json"):
        file.write_text(json.dumps(strip(json.loads(file.read_text()))))


def test_one_seed_is_judged_on_its_images_and_not_at_all_without_their_bits(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1,))
    runs = Runs("mini", "ViT-Mini", tmp_path)
    added = claim("Addition, absolute")
    assert examine(added, runs).verdict == HOLDS
    close = Claim("", "", (added.quantities[0], Threshold(added.quantities[0].values(runs)[1] - 0.3, "just below")))
    assert examine(close, runs).verdict == UNDECIDED
    assert examine(Claim("", "", added.quantities[::-1]), runs).verdict == FAILS
    without_bits(tmp_path)
    older = Runs("mini", "ViT-Mini", tmp_path)
    assert {examine(claim, older).verdict for claim in CLAIMS} == {UNDECIDED, NOT_RUN}
    assert {examine(claim, older).verdict for claim in CLAIMS if claim not in LATER} == {UNDECIDED}
    text = ledger(examine_all(older), older)
    assert "An interval over test images needs results that hold" in text
    assert "**undecided**: one seed, results without bits | undecided | linear 80." in text


def test_accuracies_have_an_interval_over_images_and_the_other_numbers_none(runs):
    for finding in (examine(claim, runs) for claim in CLAIMS):
        for comparison, pair in zip(finding.comparisons, finding.claim.pairs):
            of_images = all(quantity.of_images for quantity in pair)
            assert (comparison.difference.over_images is not None) == of_images, finding.claim.sentence


def test_nothing_run(tmp_path):
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert {examine(claim, runs).verdict for claim in CLAIMS} == {NOT_RUN}
    text = ledger(examine_all(runs), runs)
    assert f"{len(CLAIMS)} not run" in text
    assert (
        f"python eval_single_task.py --finetuning-mode=posthoc --model=ViT-Mini --seed=1 --results={tmp_path}" in text
    )
    assert f"python main.py model=ViT-Mini seed=1 results={tmp_path} num_tasks=2 method=tall_mask" in text


def test_adapted_methods_count_as_they_adapt_on_test_by_default(tmp_path):
    folder = tmp_path / "mini/ViT-Mini/seed_1"

    def write(level: float, **options: str) -> None:
        record = synthetic_results.adapted("adamerging", synthetic_results.TASKS, 1, level, **options)
        synthetic_results.dump(
            folder / f"{synthetic_results.place('adamerging', record['tasks'], **options)}.json", record
        )

    write(0.9, adapt_on="val")
    write(0.7, granularity="task")
    layer_wise = claim("Layer-wise AdaMerging")
    assert examine(layer_wise, Runs("mini", "ViT-Mini", tmp_path)).verdict == NOT_RUN
    write(0.8)
    assert examine(layer_wise, Runs("mini", "ViT-Mini", tmp_path)).verdict == HOLDS


def test_a_ratio_over_no_energy_leaves_its_seed_out(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    record = synthetic_results.ntk(2, "trace", 6.0)
    record["pairs"][0]["nystrom"]["ratio_heldout"] = [None] * 4
    synthetic_results.dump(tmp_path / "mini/ViT-Mini/seed_2/ntk_trace.json", record)
    finding = examine(claim("Eigenfunctions"), Runs("mini", "ViT-Mini", tmp_path))
    assert list(finding.values[0].index) == [1] and finding.verdict == UNDECIDED


def test_unseen_tasks_are_a_mean_over_the_splits_that_were_run(runs):
    quantity = OnUnseen(variant_row("sum"))
    records = runs.find("merging", task_list=synthetic_results.SEEN, method="sum", unseen=synthetic_results.UNSEEN)
    assert quantity.values(runs).to_dict() == pytest.approx(
        {seed: 100 * record["unseen"]["mean_accuracy"] for seed, record in records.items()}
    )
    assert quantity.published(runs) == 61.4
    command = OnUnseen(variant_row("adamerging")).commands(runs)[0]
    told = shlex.split(command)
    assert "DATASETS=[vehicles,textures,signs,letters,scenes,house_numbers]" in told and "unseen=[land,digits]" in told


def test_the_sentence_and_the_numbers_stand_in_the_ledger(runs):
    line = next(
        line for line in ledger(examine_all(runs), runs).splitlines() if line.startswith("| Addition, absolute")
    )
    assert "linear 80.7 [76.5], non-linear 76.7 [71.4], post-hoc 72.8 [57.1], pre-trained 59.0 [48.4]" in line
    assert "| **holds** | holds |" in line and "+4.0 (+3.7 to +4.2)" in line
