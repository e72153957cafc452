"""A search's points as trials in order, and how much of their spread each dial explains by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.rows import FINISHED, CannotShowError, Rows
from study.trials_file import NAME, read_trials

BINS = 4  # of a dial with many values, with equally many trials each
RESAMPLES = 400
LEAST = 4  # trials from which anything can be said
STATES = {"complete": "complete", "pruned": "pruned", "fail": "failed"}  # as the search says it, as figures do
OUTSIDE = "infeasible"  # done, and outside the search's constraints

Trial: TypeAlias = tuple[int, str, float, str]


def trials(rows: Rows, metric: str) -> pd.DataFrame:
    """trial, run, value, state in order; a search's own record says which were pruned, else the runs' states do."""
    lines = _recorded(rows.path, metric) if (rows.path / NAME).exists() else _planned(rows, metric)
    return pd.DataFrame(lines, columns=["trial", "run", "value", "state"])


def _recorded(folder: Path, metric: str) -> list[Trial]:
    """As the search left them; a trial over several seeds is named by its first run. What a pruned one reported
    last is no result."""
    lines = []
    for number, trial in enumerate(read_trials(folder)):
        if trial["state"] in STATES:
            whole = trial["state"] == "complete"
            value = trial["objectives"].get(metric, np.nan) if whole else np.nan
            state = STATES[trial["state"]] if trial["feasible"] or not whole else OUTSIDE
            lines.append((number, next(iter(trial["runs"]), ""), value, state))
    return lines


def outside(rows: Rows) -> set[str]:
    """Labels of the points that were done and break a constraint of their search, whatever their values."""
    told = read_trials(rows.path) if (rows.path / NAME).exists() else []
    broken = {run for trial in told if trial["state"] == "complete" and not trial["feasible"] for run in trial["runs"]}
    return {cell.label for cell in rows.study.cells if broken.intersection(cell.runs.values())}


def _planned(rows: Rows, metric: str) -> list[Trial]:
    try:
        values = rows.metric(metric).values
    except CannotShowError:
        values = {}
    lines = []
    for number, (run, status) in enumerate(zip(rows.runs["run"], rows.runs["status"], strict=True)):
        done = status == FINISHED and run in values
        lines.append((number, str(run), values[run] if done else np.nan, "complete" if done else str(status)))
    return lines


def settings(rows: Rows, metric: str) -> pd.DataFrame:
    """A line per trial that has a value: trial, value, and every dial of the search by its key."""
    found = trials(rows, metric).dropna(subset=["value"])
    cells = {run: cell for cell in rows.study.cells for run in cell.runs.values()}
    found = found[found["run"].isin(cells)].reset_index(drop=True)
    keys = dict.fromkeys(key for cell in rows.study.cells for key in cell.values)
    turned = {key: [cells[run].values.get(key) for run in found["run"]] for key in keys}
    return pd.concat([found[["trial", "value"]], pd.DataFrame(turned, index=found.index)], axis=1)


def dials(rows: Rows, metric: str, seed: int = 0) -> pd.DataFrame:
    """key, importance, low, high: the share of variance between the groups of each key; 95 % by bootstrap."""
    found = settings(rows, metric)
    if len(found) < LEAST:
        return pd.DataFrame(columns=["key", "importance", "low", "high"])
    values = found["value"].to_numpy(float)
    random = np.random.default_rng(seed)
    draws = random.integers(len(values), size=(RESAMPLES, len(values)))
    lines = []
    for key in found.columns.drop(["trial", "value"]):
        groups = _groups(found[key])
        low, high = np.quantile([explained(values[draw], groups[draw]) for draw in draws], (0.025, 0.975))
        lines.append((key, explained(values, groups), low, high))
    return pd.DataFrame(lines, columns=["key", "importance", "low", "high"])


def _groups(settings: pd.Series[Any]) -> NDArray[np.int_]:
    """A number per distinct value, or per quarter of the trials where there are many values."""
    numeric = pd.to_numeric(settings, errors="coerce")
    if numeric.notna().all() and numeric.nunique() > BINS:
        return np.asarray(pd.qcut(numeric, BINS, labels=False, duplicates="drop"), dtype=int)
    return np.asarray(pd.factorize(settings.astype(str))[0], dtype=int)


def explained(values: NDArray[np.float64], groups: NDArray[np.int_]) -> float:
    """Variance between groups over variance in all (eta squared); 0 where nothing varies."""
    spread = float(((values - values.mean()) ** 2).sum())
    counts = np.bincount(groups)
    means = np.bincount(groups, values) / counts.clip(min=1)
    return float((counts * (means - values.mean()) ** 2).sum()) / spread if spread else 0.0
