"""What papers and released codes set, and the suite's rows have without being asked.

The values stand in the papers and programs that the methods' files name, and here once more: a default that somebody
changes is another method under the paper's name. What the suite chose itself is at the end.
"""

import pytest

from src.merging.registry import METHODS, load_methods, variants

IMAGES, LABELS = "unlabelled images", "labels of validation images"
TENTHS = [tenth / 10 for tenth in range(1, 31)]
GRAM = dict(images=256, split="train", alphas=[1.0], ridge=0.0, teacher=0.0, normalise="none")
AS_IT_LIES = dict(matrices="all", split_qkv=False, conv1=False)
ADAPTED = dict(adapt_on="test", batch_size=16)
CONCRETE = ADAPTED | dict(coef=0.3, temperature=0.5, initial_logits=0.0, final="seeded")
FEATCAL = dict(
    base="sum", alpha=0.3, images=256, split="train", matrices="blocks", split_qkv=True, inputs="merged",
    normalise="frobenius", shrink=1.0, ridge=0.05, biases=True, norms="affine", last_tokens=0.01,
)  # fmt: skip
WUDI = dict(normalise="trace", alphas=[1.0])

# title: what the method needs, the coefficient that is published, and its options
PUBLISHED = {
    "zero-shot": ("weights", None, {}),
    "weight averaging": ("weights", None, dict(k=100)),
    "task arithmetic": ("weights", 0.3, dict(k=100, alphas=TENTHS[:10])),
    "TIES": ("weights", 1.0, dict(k=20, reduce="mean", alphas=TENTHS[:10])),
    "magnitude masking": ("weights", None, dict(k=10)),
    "TALL mask + TA": ("weights", None, dict(use_ties=False, tall_mask_lambda=[0.2, 0.3, 0.4, 0.5, 0.6])),
    "TALL mask + TIES": ("weights", None, dict(use_ties=True, tall_mask_lambda=[0.2, 0.3, 0.4, 0.5, 0.6])),
    "consensus TA": ("weights", None, dict(use_ties=False, prun_thre_k=2, alphas=TENTHS[:10])),
    "consensus TIES": ("weights", None, dict(use_ties=True, prun_thre_k=2, alphas=TENTHS[:10])),
    "AdaMerging, layer-wise": (IMAGES, None, ADAPTED | dict(coef=0.3, granularity="layer", loss="entropy")),
    "AdaMerging, task-wise": (IMAGES, None, ADAPTED | dict(coef=0.3, granularity="task", loss="entropy")),
    "AdaMerging, layer-wise, expert labels": (IMAGES, None, ADAPTED | dict(coef=0.3, loss="expert")),
    "AdaMerging++, layer-wise": (IMAGES, None, ADAPTED | dict(coef=0.3, granularity="layer", k=20)),
    "AdaMerging++, task-wise": (IMAGES, None, ADAPTED | dict(coef=0.3, granularity="task", k=20)),
    "Concrete TA": (IMAGES, None, CONCRETE),
    "Concrete AdaMerging, task-wise": (IMAGES, None, CONCRETE | dict(variant="original", inner_lr=1.0)),
    "Concrete AdaMerging, layer-wise": (IMAGES, None, CONCRETE | dict(variant="original", inner_lr=1.0)),
    "aTLAS": (LABELS, None, dict(adapt_on="val", batch_size=16, coef=0.0, weight_decay=0.1, clip=1.0)),
    "TSV-M": ("weights", 1.0, AS_IT_LIES | dict(rank=None, rest="mean", alphas=TENTHS)),
    "TSV-C": ("weights", None, AS_IT_LIES | dict(rank=None)),
    "Iso-C": ("weights", None, AS_IT_LIES | dict(rest="mean", alphas=TENTHS)),
    "Iso-CTS": ("weights", None, AS_IT_LIES | dict(rest="mean", alphas=TENTHS, common_space_fraction=0.8)),
    "CART": ("weights", 2.0, dict(matrices="blocks", split_qkv=False, rank=0.12)),
    "RegMean": (IMAGES, None, GRAM | dict(inputs="own", shrink=0.95, rest="mean", norms="rest")),
    "RegMean++": (IMAGES, None, GRAM | dict(inputs="layer", shrink=0.95, rest="mean", norms="rest")),
    "LOT": (IMAGES, None, GRAM | dict(inputs="own", shrink=1.0, norms="scale")),
    "FeatCal": (IMAGES, None, FEATCAL | dict(anchor=2.2, teacher=0.25)),  # its code
    "FeatCal, as in its paper": (IMAGES, None, FEATCAL | dict(anchor=2.0, teacher=0.3)),
    "ACTMat": ("weights", None, dict(normalise="none", ridge=0.0, alphas=[1.0])),
    "WUDI, Adam as published": (
        "weights", None, WUDI | dict(solver="adam", steps=300, matrices="blocks", rest="zero"),
    ),
    "WUDI, FusionBench's tensors": (
        "weights", None, WUDI | dict(solver="adam", steps=400, matrices="all", rest="mean"),
    ),
    "EMR": ("weights", None, dict(rescale="global")),
    "LiNeS, task arithmetic": ("weights", None, dict(base="sum", tail="shallow")),
    "LiNeS, TIES": ("weights", None, dict(base="ties", tail="shallow")),
    "LiNeS, consensus TA": ("weights", None, dict(base="consensus", tail="shallow")),
    "SVC, weight averaging": ("weights", None, AS_IT_LIES | dict(base="average", alpha=None, clip=0.1)),
    "SVC, task arithmetic": ("weights", None, AS_IT_LIES | dict(base="sum", alpha=None, clip=0.1)),
    "SVC, TSV-M": ("weights", None, AS_IT_LIES | dict(base="tsv_m", alpha=1.0, clip=1.0)),
    "SVC, Iso-C": ("weights", None, AS_IT_LIES | dict(base="iso_c", alpha=1.5, clip=0.1)),
    "SVC, Iso-CTS": ("weights", None, AS_IT_LIES | dict(base="iso_cts", alpha=1.5, clip=0.2)),
    "DARE + TA": ("weights", 0.3, dict(then="sum", k=100, p=0.5, rescale=True)),
    "DARE + TIES": ("weights", 0.3, dict(then="ties", k=20, p=0.5, rescale=True)),
    "Breadcrumbs": ("weights", None, dict(then="sum", density=0.15, gamma=0.006, by="tensor")),
    "DELLA": ("weights", None, dict(then="ties", k=100, density=0.7, epsilon=0.07, rescale="inverse")),
    "MagMax": ("weights", 0.5, dict(alphas=TENTHS[:10])),
    "PCB": ("weights", 1.2, dict(variant="pcb_ES", clamp=None, ratio=None)),
    "Fisher merging": (IMAGES, None, dict(images=256, split="train", batch_size=32, floor=1e-6, normalise=True)),
    "AdaRank": (
        IMAGES, None, ADAPTED | dict(start="task_arithmetic", coef=0.3, rank=1.0, temperature=10.0, loss="entropy"),
    ),
    "AdaRank, CART": (
        IMAGES, None, ADAPTED | dict(start="cart", coef=2.3, rank=0.16, initial_logit=0.1, temperature=10.0),
    ),
    "Surgery, task arithmetic": (IMAGES, None, ADAPTED | dict(base="sum", coefficient=0.3, rank=16)),
    "Surgery, weight averaging": (IMAGES, None, ADAPTED | dict(base="average", rank=16)),
    "Surgery, AdaMerging": (IMAGES, None, ADAPTED | dict(base="adamerging", rank=16)),
    "MetaGPT": ("weights", None, {}),
    # the suite's own choices: where no paper says one, and where the released code is known to be wrong
    "magnitude pruning": ("weights", None, dict(k=10)),
    "Model Stock": ("weights", None, dict(clamp=True)),
    "WUDI": ("weights", None, WUDI | dict(solver="closed", ridge=0.1, matrices="blocks", rest="zero")),
    "tangent matching": (
        IMAGES, None, dict(metric="features", init="sum", alpha=0.3, mu=0.0, images=256, split="train"),
    ),
}  # fmt: skip
CHOSEN = {
    "Iso-CTS": dict(transpose_proj=True),
    "SVC, weight averaging": dict(transpose_proj=True),
    "CART": dict(lambdas=TENTHS),
    "PCB": dict(alphas=[tenth / 10 for tenth in range(5, 21)]),
    "LiNeS, task arithmetic": dict(betas=TENTHS),
    "Breadcrumbs": dict(alphas=TENTHS[:10]),
    "Fisher merging": dict(estimator="diagonal", classes="sampled", floor_by="max"),
    "RegMean": dict(matrices="linear", precision="float64"),
    "RegMean++": dict(tail="merged"),
    "LOT": dict(precision="float32"),
    "ACTMat": dict(matrices="linear", rest="mean"),
    "WUDI, Adam as published": dict(lr=0.015, lr_unit="rms"),
    "tangent matching": dict(iterations=[1, 2, 4, 8, 16], precondition="kronecker", damping=1e-3),
}


@pytest.mark.parametrize("title", PUBLISHED)
def test_a_row_has_the_settings_of_its_paper(title):
    load_methods()
    needs, untuned, options = PUBLISHED[title]
    variant = next(row for row in variants() if row.title == title)
    method = METHODS[variant.method](**variant.options)
    assert (method.needs, method.untuned) == (needs, untuned)
    for name, value in (options | CHOSEN.get(title, {})).items():
        found = getattr(method, name)
        assert (list(found) if isinstance(value, list) else found) == value, name


def test_every_row_of_the_tables_is_held():
    load_methods()
    here = {row.title for row in variants() if METHODS[row.method].__module__.startswith("src.merging.")}
    assert here == {*PUBLISHED} >= {*CHOSEN}
