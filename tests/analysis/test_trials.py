"""Trials of a search, and how much of their spread each dial explains: against the definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from analysis.figures import search
from analysis.rows import load_rows
from analysis.times import load_times
from analysis.trials import dials, explained, settings, trials
from tests.analysis.synthetic import run_name, write_study


def test_the_explained_share_is_that_of_a_one_way_analysis_of_variance() -> None:
    """eta^2 = F k / (F k + n - k - 1), with k + 1 groups."""
    random = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], 5)
    values = random.normal(size=15) + groups
    f = float(f_oneway(*(values[groups == group] for group in range(3))).statistic)
    assert explained(values, groups) == pytest.approx(2 * f / (2 * f + 12))
    assert explained(np.ones(4), np.array([0, 0, 1, 1])) == 0


def test_a_dial_that_decides_explains_most(tmp_path: Path) -> None:
    rows = load_rows(write_study(tmp_path, seeds=(0,)))
    assert dials(rows, "val_loss").empty  # three trials say nothing
    rows = load_rows(write_study(tmp_path / "more", values=(1, 2, 3, 4, 5, 6, 7, 8), seeds=(0,)))
    (found,) = dials(rows, "val_loss").to_dict("records")
    assert found["key"] == "backbone.M"
    assert found["importance"] > 0.9
    assert found["low"] <= found["importance"]
    turned = settings(rows, "val_loss")
    assert sorted(turned["backbone.M"]) == list(range(1, 9))


def test_trials_are_the_plans_points_or_the_searchs_own_record(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=(0,), failed={run_name("ablate_M", 4, 0): "diverged"})
    assert list(trials(load_rows(folder), "val_loss")["state"]) == ["complete", "complete", "failed"]
    told = [
        {"state": "complete", "runs": [run_name("ablate_M", 1, 0)], "objectives": {"val_loss": 0.5}},
        {"state": "pruned", "runs": [run_name("ablate_M", 2, 0)], "objectives": {}},
        {"state": "waiting", "runs": [], "objectives": {}},
        {"state": "fail", "runs": [run_name("ablate_M", 4, 0)], "objectives": {}},
    ]
    (folder / "trials.json").write_text(json.dumps(told), encoding="utf-8")
    found = trials(load_rows(folder), "val_loss")
    assert list(found["state"]) == ["complete", "pruned", "failed"]
    assert found["value"].iloc[0] == 0.5
    assert found["value"].iloc[1:].isna().all()


def test_marks_at_the_foot_are_those_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(search, "caption", lambda figure, text: said.append(text))
    frame = pd.DataFrame({"trial": [0, 1], "value": [0.5, 0.1], "state": ["complete", "complete"]})
    (axes,) = search.search_history(frame).axes
    assert said.pop().endswith("at the foot: | pruned, x failed.")
    assert list(axes.lines[1].get_ydata()) == [0.5, 0.1]
    frame["state"] = ["complete", "infeasible"]
    (axes,) = search.search_history(frame).axes
    assert said.pop().endswith("at the foot: | pruned, x failed, + infeasible.")
    assert list(axes.lines[1].get_ydata()) == [0.5]  # the best so far


def test_times_are_read_from_every_machine(tmp_path: Path) -> None:
    assert load_times(tmp_path).empty
    for machine in ("one", "two"):
        folder = tmp_path / "bench" / machine
        folder.mkdir(parents=True)
        text = f"series,side,ms,low,high,gmacs,device\ndit-tiny,8,1.0,0.9,1.1,0.1,{machine}\n"
        (folder / "resolution.csv").write_text(text, encoding="utf-8")
    assert list(load_times(tmp_path)["device"]) == ["one", "two"]
