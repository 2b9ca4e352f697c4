"""The ledger of claims: verdicts follow the sign with one seed and the interval with several, from results alone."""

import pandas as pd
import pytest
import synthetic_results

from src.reporting.claim import FAILS, HOLDS, NOT_RUN, UNDECIDED, Claim, Merged, examine, judge, ledger
from src.reporting.concrete.claims import OnUnseen
from src.reporting.methods import the
from src.reporting.papers import offered
from src.reporting.runs import Runs
from src.reporting.tall.claims import ABSOLUTE

CLAIMS = offered("claims")


def seeds(*values: float) -> pd.Series:
    return pd.Series(values, index=range(1, len(values) + 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path_factory.mktemp("claims")))


def claim(start: str) -> Claim:
    return next(claim for claim in CLAIMS if claim.sentence.startswith(start))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([seeds(0.1)], HOLDS),
        ([seeds(-0.1)], FAILS),
        ([seeds(0.0)], FAILS),
        ([seeds(1.0, 1.1, 0.9)], HOLDS),
        ([seeds(-1.0, -1.1, -0.9)], FAILS),
        ([seeds(1.0, -0.5, 0.4)], UNDECIDED),
        ([seeds(0.5, 0.5)], HOLDS),
        ([seeds(1.0, 1.1), seeds(1.0, -1.0)], UNDECIDED),
        ([seeds(1.0, -1.0), seeds(-1.0, -1.01)], FAILS),
    ],
)
def test_verdicts(differences, verdict):
    assert judge(differences) == verdict


def test_the_made_up_results_hold_by_construction(runs):
    verdicts = {claim.sentence: examine(claim, runs).verdict for claim in CLAIMS}
    assert set(verdicts.values()) == {HOLDS}, verdicts


def test_a_claim_against_the_results_does_not_hold(runs):
    turned = Claim("", "turned", claim("Addition, absolute").quantities[::-1])
    assert examine(turned, runs).verdict == FAILS
    ties, arithmetic = (Merged(the("consensus", **options), ABSOLUTE) for options in ({"use_ties": True}, {}))
    close = Claim("", "with a margin", (ties, arithmetic))
    assert examine(close, runs).verdict != HOLDS
    granted = Claim("", "with a margin", close.quantities, margin=2.0)
    assert examine(granted, runs).verdict == HOLDS


def test_differences_are_paired_over_the_seeds_that_have_both(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    (tmp_path / "mini/ViT-Mini/seed_1/disentanglement_linear.json").unlink()
    finding = examine(claim("Linearly fine-tuned"), Runs("mini", "ViT-Mini", tmp_path))
    assert list(finding.differences[0].index) == [2]
    assert finding.missing == ("python eval_disentanglement.py --finetuning-mode=linear --model=ViT-Mini --seed=1",)


def test_nothing_run(tmp_path):
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert {examine(claim, runs).verdict for claim in CLAIMS} == {NOT_RUN}
    text = ledger(runs)
    assert f"{len(CLAIMS)} not run" in text
    assert "python eval_single_task.py --finetuning-mode=posthoc --model=ViT-Mini --seed=1" in text
    assert "python main.py model=ViT-Mini seed=1 num_tasks=2 method=tall_mask" in text


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
    assert list(finding.values[0].index) == [1] and finding.verdict == HOLDS


def test_unseen_tasks_are_a_mean_over_the_splits_that_were_run(runs):
    quantity = OnUnseen(the("sum"))
    records = runs.find("merging", task_list=synthetic_results.SEEN, method="sum", unseen=synthetic_results.UNSEEN)
    assert quantity.values(runs).to_dict() == pytest.approx(
        {seed: 100 * record["unseen"]["mean_accuracy"] for seed, record in records.items()}
    )
    assert quantity.published(runs) == 61.4
    command = OnUnseen(the("adamerging")).commands(runs)[0]
    assert "DATASETS=[vehicles,textures,signs,letters,scenes,house_numbers] unseen=[land,digits]" in command


def test_the_sentence_and_the_numbers_stand_in_the_ledger(runs):
    line = next(line for line in ledger(runs).splitlines() if line.startswith("| Addition, absolute"))
    assert "linear 80.7 [76.5], non-linear 76.7 [71.4], post-hoc 72.8 [57.1], pre-trained 59.0 [48.4]" in line
    assert "| **holds** |" in line and "+4.0 (+3.7 to +4.2)" in line
