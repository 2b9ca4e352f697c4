"""The ledger of claims: verdicts follow the sign with one seed and the interval with several, from results alone."""

import pytest
import synthetic_results

from src.reporting import claims
from src.reporting.claims import CLAIMS, FAILS, HOLDS, NOT_RUN, UNDECIDED, examine, judge, on_unseen
from src.reporting.runs import PerSeed, Runs


def seeds(*values: float) -> PerSeed:
    return PerSeed(enumerate(values, start=1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs("mini", "ViT-Mini", synthetic_results.write(tmp_path_factory.mktemp("claims")))


def claim(start: str) -> claims.Claim:
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
    found = claim("Addition, absolute")
    turned = claims.Claim(found.paper, found.where, "turned", found.quantities[::-1])
    assert examine(turned, runs).verdict == FAILS
    close = claims.Claim(
        "tall", "", "with a margin", (claims.merged("consensus_use_ties=True"), claims.merged("consensus"))
    )
    assert examine(close, runs).verdict != HOLDS
    granted = claims.Claim("tall", "", "with a margin", close.quantities, margin=2.0)
    assert examine(granted, runs).verdict == HOLDS


def test_differences_are_paired_over_the_seeds_that_have_both(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2))
    (tmp_path / "mini/ViT-Mini/seed_1/disentanglement_linear.json").unlink()
    finding = examine(claim("Linearly fine-tuned"), Runs("mini", "ViT-Mini", tmp_path))
    assert list(finding.differences[0]) == [2]
    assert finding.missing == ("python eval_disentanglement.py --finetuning-mode=linear --model=ViT-Mini --seed=1",)


def test_nothing_run(tmp_path):
    runs = Runs("mini", "ViT-Mini", tmp_path)
    assert {examine(claim, runs).verdict for claim in CLAIMS} == {NOT_RUN}
    ledger = claims.ledger(runs)
    assert f"{len(CLAIMS)} not run" in ledger
    assert "python eval_single_task.py --finetuning-mode=posthoc --model=ViT-Mini --seed=1" in ledger
    assert "python main.py model=ViT-Mini seed=1 num_tasks=2 method=tall_mask" in ledger


def test_adapted_methods_count_as_they_adapt_on_test_by_default(tmp_path):
    folder = tmp_path / "mini/ViT-Mini/seed_1/merging/8task/standard-visual"
    for label, level in {"adamerging_adapt_on=val": 0.9, "adamerging_granularity=task": 0.7}.items():
        record = synthetic_results.adapted(label, synthetic_results.TASKS, 1, level)
        synthetic_results.dump(folder / f"{label}.json", record)
    layer_wise = claim("Layer-wise AdaMerging")
    assert examine(layer_wise, Runs("mini", "ViT-Mini", tmp_path)).verdict == NOT_RUN
    record = synthetic_results.adapted("adamerging", synthetic_results.TASKS, 1, 0.8)
    synthetic_results.dump(folder / "adamerging.json", record)
    assert examine(layer_wise, Runs("mini", "ViT-Mini", tmp_path)).verdict == HOLDS


def test_a_ratio_over_no_energy_leaves_its_seed_out(tmp_path):
    synthetic_results.write(tmp_path, seeds=(1, 2), merges=False)
    record = synthetic_results.ntk(2, 6.0)
    record["pairs"][0]["nystrom"]["ratio_heldout"] = [None] * 4
    synthetic_results.dump(tmp_path / "mini/ViT-Mini/seed_2/ntk_trace.json", record)
    finding = examine(claim("Eigenfunctions"), Runs("mini", "ViT-Mini", tmp_path))
    assert list(finding.values[0]) == [1] and finding.verdict == HOLDS


def test_unseen_tasks_are_a_mean_over_the_splits_that_were_run(runs):
    seen, published = on_unseen("sum"), 61.4
    tasks = runs.merged(synthetic_results.SEEN)
    records = tasks.records["sum_unseen=digits+land"]
    assert seen.read(runs) == {s: 100 * r["unseen"]["mean_accuracy"] for s, r in records.items()}
    assert seen.published(runs) == published
    command = on_unseen("adamerging").commands(runs)[0]
    assert "DATASETS=[vehicles,textures,signs,letters,scenes,house_numbers] unseen=[land,digits]" in command


def test_the_sentence_and_the_numbers_stand_in_the_ledger(runs):
    line = next(line for line in claims.ledger(runs).splitlines() if line.startswith("| Addition, absolute"))
    assert "linear 80.7 [76.5], non-linear 76.7 [71.4], post-hoc 72.8 [57.1], pre-trained 59.0 [48.4]" in line
    assert "| **holds** |" in line and "+4.0 (+3.7 to +4.2)" in line
