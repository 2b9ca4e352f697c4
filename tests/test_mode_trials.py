"""The settings of further modes on mini are what their trials and the rule of docs/modes.md say."""

import pandas as pd
import pytest

from src.datasets import registry
from src.modes import MODES, TRAINED
from src.runtime.paths import ROOT

TRIALS = pd.read_csv(ROOT / "docs" / "mode_trials.csv")
WITHIN = 0.01  # of the mode's best on single tasks


@pytest.mark.parametrize("mode", [mode for mode in TRAINED if MODES[mode].extended])
def test_the_setting_is_the_one_that_adds_up_best_of_those_that_fine_tune_well(mode):
    trials = TRIALS[TRIALS["mode"] == mode]
    good = trials[trials["single_tasks"] >= trials["single_tasks"].max() - WITHIN]
    best = good.loc[good["added_tuned"].idxmax()]
    settings = {"lr": registry.suite("mini").protocol.lr[mode]} | MODES[mode].options
    assert settings[best["option"]] == best["value"]


def test_the_page_has_every_trial():
    page = (ROOT / "docs" / "modes.md").read_text(encoding="utf-8")
    table = page.partition("## Settings on mini")[2].splitlines()
    for mode, trials in TRIALS.groupby("mode"):
        (cells,) = [[cell.strip() for cell in line.split("|")] for line in table if line.startswith(f"| `{mode}` |")]
        for place, column in enumerate(("single_tasks", "added_tuned", "added_at_one"), 3):
            told = [float(number) for number in cells[place].split(", ")]
            assert told == pytest.approx((100 * trials[column]).tolist(), abs=0.051)
