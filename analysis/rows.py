"""The rows of a sweep, or of a whole store, ready to be shown; where something is missing, a sentence says so.

rows = load_rows("results/ablate_M")
rows.tidy       one line per run and metric
rows.wide       one line per run
rows.remarks    what a reader must know before looking at either
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from study.comparison import COST_PROTOCOLS, NOISES, Cell, Metric, Study, read_study
from study.run_directory import RunDirectory, read_curve
from study.store import load, runs, wide
from study.strict import ConfigError
from study.sweep_file import REPLICATES, shown

FACTS = ("run", "status", "failure", "attempts", "rows", "stamp")  # columns of a run that are no config key
SILENT = ("score.", "machine.", "log.", "results", *REPLICATES, "seeds.")  # keys that make no other cell
TIDY = ("run", "cell", "replicate", "metric", "value", "low", "high", "n", "units", "protocol", "status", "failure")
FINISHED = "done"
FLOOR = ".real"  # ends the name of what real, held-out images score in the same metric


class CannotShowError(ValueError):
    """One sentence: why these rows make no such figure or table."""


@dataclass(frozen=True)
class Rows:
    """What a sweep or a store holds."""

    path: Path
    study: Study  # cells, their runs, their baselines, their metrics
    tidy: pd.DataFrame  # TIDY, the config keys that differ, provenance.*
    wide: pd.DataFrame  # run, cell, replicate, facts, one column per metric
    runs: pd.DataFrame  # run, cell, replicate, status, reason; one line per planned run, in order
    remarks: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def store(self) -> Path:
        return self.path.parent if (self.path / "plan.json").exists() else self.path

    def metric(self, name: str) -> Metric:
        """The metric under the one protocol that all of its runs share, the first if there are several such."""
        found = [metric for metric in self.study.metrics if metric.name == name]
        if not found:
            raise CannotShowError(_not_measured(self, name))
        everywhere = set().union(*(metric.values for metric in found))
        shared = [metric for metric in found if set(metric.values) == everywhere]
        if not shared:
            listed = ", ".join(f"{metric.protocol} ({len(metric.values)} runs)" for metric in found)
            raise CannotShowError(
                f"{name} of {self.name} was measured under {len(found)} protocols that cannot share an axis: {listed}."
            )
        return shared[0]

    def quality(self) -> list[str]:
        """Metrics that say how good a run is, details aside, in the order of the rows."""
        names = dict.fromkeys(m.name for m in self.study.metrics if not m.is_cost)
        return [name for name in names if not is_detail(name) and not name.endswith(FLOOR)]

    def missing(self, cell: Cell) -> str:
        """Why runs of a cell have no result, such as `diverged`; "" if all have."""
        own = self.runs[(self.runs["cell"] == cell.label) & (self.runs["status"] != FINISHED)]
        counts = Counter(own["reason"])
        return ", ".join(f"{reason} ({count})" if count > 1 else str(reason) for reason, count in counts.items())

    def directory(self, run: str) -> RunDirectory:
        return RunDirectory(self.store, run)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """cell, replicate, run, images, metric, value: what the runs logged while they trained."""
        parts = [self._curve(run) for run in self.runs["run"]]
        frame = pd.DataFrame([line for part in parts for line in part], columns=["run", "images", "metric", "value"])
        return frame.merge(self.runs[["run", "cell", "replicate"]], on="run", how="left")

    def _curve(self, run: str) -> list[tuple[str, int, str, float]]:
        path = self.directory(run).curve
        if not path.exists():
            return []
        points = read_curve(path)
        return [(run, p["images"], key, value) for p in points for key, value in p.items() if key != "images"]


def load_rows(path: str | Path) -> Rows:
    """Everything under a sweep's folder or a store; nothing there, or nothing readable, is a remark, no error."""
    folder = Path(path)
    try:
        tidy, states = load(folder), runs(folder)
        study = read_study(folder, tidy) if (folder / "plan.json").exists() else _study_of_store(folder, tidy, states)
    except ConfigError as error:
        return _nothing(folder, f"{error}. Run its sweep, then set RESULTS to the store it wrote, ../results.")
    except (ValueError, KeyError, OSError, json.JSONDecodeError) as error:
        return _nothing(folder, f"{folder} cannot be read: {error}")
    places = {run: (cell.label, seed) for cell in study.cells for seed, run in cell.runs.items()}
    states = _states(states, places)
    return Rows(folder, study, _placed(tidy, places), _wide(tidy, places), states, _remarks(study, states))


def brief(label: str) -> str:
    """A cell's label without what a `match` solved for, and without saying that a backbone is one."""
    return label.split(" (")[0].replace("backbone=", "")


def is_detail(metric: str) -> bool:
    """Bins of the validation loss belong to their own figure."""
    return metric.startswith("val_loss_bin")


def _not_measured(rows: Rows, name: str) -> str:
    if rows.tidy.empty:
        return rows.remarks[0] if rows.remarks else f"{rows.name} has no results yet."
    known = ", ".join(dict.fromkeys(metric.name for metric in rows.study.metrics if not is_detail(metric.name)))
    return f"{name} was not measured in {rows.name}; there are {known}."


def _nothing(folder: Path, sentence: str) -> Rows:
    study = Study(folder.name, "", (), {}, ())
    empty = pd.DataFrame(columns=["run", "cell", "replicate", "status", "reason"])
    return Rows(folder, study, pd.DataFrame(columns=list(TIDY)), empty.copy(), empty, (sentence,))


def _study_of_store(folder: Path, tidy: pd.DataFrame, states: pd.DataFrame) -> Study:
    """A store has no plan: its runs are of one cell if nothing but seeds and machines differs between them."""
    keys = [str(key) for key in states if key not in FACTS and not str(key).startswith(SILENT)]
    named = _labels(states, keys)
    cells: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, Any]] = {}
    for label, state in zip(named, states.to_dict("records"), strict=True):
        members = cells.setdefault(label, {})
        members[_replicate(state, members)] = str(state["run"])
        values[label] = {key: state[key] for key in keys if not _absent(state[key])}
    metrics = []
    for (name, protocol), group in tidy.groupby(["metric", "protocol"], observed=True, sort=False):
        measured = dict(zip(group["run"].astype(str), group["value"], strict=True))
        metrics.append(Metric(str(name), str(protocol), measured, str(protocol).startswith(COST_PROTOCOLS)))
    found = tuple(Cell(label, values[label], members) for label, members in cells.items())
    return Study(folder.name, "", found, {}, tuple(metrics), same_noises=NOISES not in states)


def _labels(states: pd.DataFrame, keys: Sequence[str]) -> list[str]:
    """Per run its backbone and the keys that differ within that backbone's family."""
    labels = pd.Series("", index=states.index, dtype=object)
    family = states["backbone.name"].fillna("") if "backbone.name" in states else pd.Series("", index=states.index)
    short = _short_names([key for key in keys if key != "backbone.name"])
    for name, group in states.groupby(family, sort=False):
        told = {key: leaf for key, leaf in short.items() if group[key].astype(str).nunique(dropna=False) > 1}
        lines = group[list(told)].to_dict("records")
        labels.loc[group.index] = pd.Series([_label(str(name), line, told) for line in lines], index=group.index)
    return list(labels)


def _label(family: str, line: Mapping[Any, Any], told: Mapping[str, str]) -> str:
    values = [f"{leaf}={shown(line[key])}" for key, leaf in told.items() if not _absent(line[key])]
    return " ".join([family, *values]).strip() or "all"


def _replicate(state: Mapping[Any, Any], taken: Mapping[str, str]) -> str:
    seed = state.get("seed")
    name = f"run={len(taken)}" if _absent(seed) else f"seed={shown(seed)}"
    return name if name not in taken else f"{name} run={len(taken)}"


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    leaves = Counter(key.rsplit(".", 1)[-1] for key in keys)
    return {key: key if leaves[key.rsplit(".", 1)[-1]] > 1 else key.rsplit(".", 1)[-1] for key in keys}


def _absent(value: Any) -> bool:
    return value is None or value != value  # NaN: this run has no such key


def _states(states: pd.DataFrame, places: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    own = states.set_index("run").reindex(list(places))
    status = own["status"].astype(object).where(own["status"].notna(), "pending")
    failure = own["failure"].astype(object) if "failure" in own else pd.Series(None, index=own.index, dtype=object)
    reason = failure.where(failure.notna(), status).where(status != FINISHED, "")
    labels = {"cell": [cell for cell, _ in places.values()], "replicate": [seed for _, seed in places.values()]}
    return pd.DataFrame({"run": own.index, **labels, "status": status.to_numpy(), "reason": reason.to_numpy()})


def _placed(frame: pd.DataFrame, places: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    where = frame["run"].astype(str)
    placed = frame.drop(columns=["cell", "replicate"], errors="ignore")
    placed.insert(1, "cell", [places.get(run, ("", ""))[0] for run in where])
    placed.insert(2, "replicate", [places.get(run, ("", ""))[1] for run in where])
    return placed


def _wide(tidy: pd.DataFrame, places: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    if tidy.empty:
        return pd.DataFrame(columns=["run", "cell", "replicate"])
    return _placed(wide(tidy), places)


def _remarks(study: Study, states: pd.DataFrame) -> tuple[str, ...]:
    done = states[states["status"] == FINISHED]
    if states.empty:
        return (f"{study.name} holds no runs yet.",)
    lost = states[states["status"] != FINISHED]
    counts = ", ".join(f"{reason} ({count})" for reason, count in Counter(lost["reason"]).items())
    if done.empty:
        return (f"None of the {len(states)} runs of {study.name} has a result: {counts}.",)
    remarks = [f"{len(lost)} of {len(states)} runs of {study.name} have no result: {counts}."] if len(lost) else []
    if len(done) == 1:
        remarks.append(f"One run of {study.name} is done: no interval and no difference can be given.")
    elif not done["cell"].duplicated().any():
        remarks.append("One run per point: no interval can be given, and no difference can be told from noise.")
    if not study.partner:
        remarks.append(f"{study.name} names no baseline: differences are left out.")
    else:
        absent = sorted(study.baselines - set(done["cell"]))
        remarks += [f"The baseline {label} has no result: differences to it are left out." for label in absent]
    return tuple(remarks)
