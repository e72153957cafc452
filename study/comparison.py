"""Which points differ from the baseline by more than noise: cells averaged over seeds, differences paired by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.plan_file import read_plan as read_plan
from study.stats import paired_difference, t_quantile
from study.sweep_file import REPLICATES, Value, shown, spelling

FLOOR = ".real"  # ends the name of what real images score
SAMPLES = "@"  # comes before the number of samples in the name of what they score
DETAIL = re.compile(r"val_loss_bin(?!0$)\d+$")  # bin 0, the least noise, is where loss of detail shows
NOISES = "sample.seed"
COST_PROTOCOLS = ("cost-", "speed-")  # rows that say what a run took, not how good it is


@dataclass(frozen=True)
class Cell:
    """Points that differ in nothing but their seeds."""

    label: str
    values: Mapping[str, Value]
    runs: Mapping[str, str]  # run id by replicate


@dataclass(frozen=True)
class Estimate:
    """A mean and the reach of its 95 % interval; None where one run is all there is."""

    mean: float
    reach: float | None
    n: int

    @property
    def beyond_noise(self) -> bool:
        return self.reach is not None and abs(self.mean) > self.reach


@dataclass(frozen=True)
class Metric:
    """One metric under one protocol, over all cells."""

    name: str
    protocol: str
    values: Mapping[str, float]  # by run
    is_cost: bool

    @property
    def is_floor(self) -> bool:
        """Whether it is what real images score, to which the metric of the same name can be held."""
        return self.name.endswith(FLOOR)

    @property
    def is_of_samples(self) -> bool:
        """Whether it scores what runs drew, as `fd_digits8@500` does 500 images."""
        return SAMPLES in self.name and not self.is_floor

    @property
    def is_detail(self) -> bool:
        return DETAIL.match(self.name) is not None


@dataclass(frozen=True)
class Floor:
    """What real images score; how many, where they are not as many as the samples."""

    value: float
    count: str = ""

    @property
    def label(self) -> str:
        return f"real images ({self.count})" if self.count else "real images"


@dataclass(frozen=True)
class Study:
    """The points of a finished sweep as `plan.json` lists them, with what was measured."""

    name: str
    question: str
    cells: tuple[Cell, ...]
    partner: Mapping[str, str]  # label of the baseline cell each cell is compared with
    metrics: tuple[Metric, ...]
    same_noises: bool = False  # whether all runs draw their samples from the same starting noises

    @property
    def baselines(self) -> set[str]:
        return set(self.partner.values())

    def floor(self, metric: Metric) -> Floor | None:
        """What real images score in a metric: as many as its samples, or else as many as the data holds out."""
        stem = metric.name.split(SAMPLES)[0] + SAMPLES
        names = dict.fromkeys(m.name for m in self.metrics if m.is_floor and m.name.startswith(stem))
        name = metric.name + FLOOR
        if name not in names:
            name = next(iter(names), "")
        found = [m.values[run] for m in self.metrics if m.name == name for run in m.values]
        if not found:
            return None
        count = name.removeprefix(stem).removesuffix(FLOOR)
        return Floor(float(np.mean(found)), "" if name == metric.name + FLOOR else count)

    def cell(self, label: str) -> Cell:
        return next(cell for cell in self.cells if cell.label == label)


def read_study(folder: Path, rows: pd.DataFrame) -> Study:
    """The sweep whose plan lies in this folder."""
    return study_of(read_plan(folder), rows)


def study_of(plan: Mapping[str, Any], rows: pd.DataFrame) -> Study:
    """Bring a sweep's plan and its rows together."""
    cells = _cells(plan)
    same_noises = NOISES not in rows  # only keys that differ between the runs are columns
    return Study(plan["sweep"], plan["question"], cells, _partners(plan, cells), _metrics(rows), same_noises)


def spread(cells: Sequence[Cell], metric: Metric) -> tuple[float, int]:
    """Standard deviation of a single run, and its degrees of freedom, once cell and seed are accounted for.

    The residual of an additive model, value = cell + seed: runs of one seed share data order, noise and
    sampling seeds, so what a seed does to all cells alike is no noise in their differences.
    """
    seen = [
        (index, seed, metric.values[run])
        for index, cell in enumerate(cells)
        for seed, run in cell.runs.items()
        if run in metric.values
    ]
    if not seen:
        return math.nan, 0
    index = np.array([cell for cell, *_ in seen], dtype=int)
    seeds = {seed: column for column, seed in enumerate(sorted({seed for _, seed, _ in seen}))}
    effects = np.zeros((len(seen), len(seeds)))
    effects[np.arange(len(seen)), [seeds[seed] for _, seed, _ in seen]] = 1
    # Both sides minus their cell's mean (Frisch and Waugh): no column per cell, of which there may be a thousand.
    design = _within(effects, index, len(cells))
    y = _within(np.array([[value] for *_, value in seen]), index, len(cells))
    solution, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(seen) - len(set(index.tolist())) - int(rank)
    if freedom < 1:
        return math.nan, 0
    residual = y - design @ solution
    return float(np.sqrt((residual**2).sum() / freedom)), freedom


def _within(values: NDArray[np.float64], index: NDArray[np.int_], cells: int) -> NDArray[np.float64]:
    """Each line (lines, columns) minus the mean of its cell's lines."""
    counts = np.bincount(index, minlength=cells).clip(min=1)[:, None]
    means = np.stack([np.bincount(index, column, cells) for column in values.T], axis=1) / counts
    return values - means[index]


def values_of(cell: Cell, metric: Metric) -> list[float]:
    """One per run of the cell that has the metric."""
    return [metric.values[run] for run in cell.runs.values() if run in metric.values]


def mean_of(cell: Cell, metric: Metric) -> Estimate | None:
    """Over the cell's seeds, with Student's interval from those alone: the seed matters here."""
    values = values_of(cell, metric)
    if not values:
        return None
    if len(values) < 2:
        return Estimate(values[0], None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(float(np.mean(values)), t_quantile(len(values) - 1) * error, len(values))


def difference(study: Study, cell: Cell, metric: Metric) -> Estimate | None:
    """To the cell's baseline, seed by seed, with the spread of all cells pooled; None without a common seed."""
    return _difference(study, cell, metric, spread(study.cells, metric))


def differences(study: Study, metric: Metric) -> dict[str, Estimate | None]:
    """Every cell's difference to its baseline, by label."""
    pooled = spread(study.cells, metric)
    return {cell.label: _difference(study, cell, metric, pooled) for cell in study.cells}


def own_difference(study: Study, cell: Cell, metric: Metric) -> Estimate | None:
    """The same mean, but with Student's interval of these pairs alone: no other point's spread comes in."""
    ours, theirs = _pairs(study, cell, metric)
    if len(ours) < 2:
        return Estimate(ours[0] - theirs[0], None, 1) if ours else None
    found = paired_difference(ours, theirs)
    return Estimate(found.mean, found.interval[1] - found.mean, found.n)


def _difference(study: Study, cell: Cell, metric: Metric, pooled: tuple[float, int]) -> Estimate | None:
    ours, theirs = _pairs(study, cell, metric)
    if not ours:
        return None
    deviation, freedom = pooled
    reach = t_quantile(freedom) * deviation * math.sqrt(2 / len(ours)) if freedom else None
    return Estimate(float(np.mean(np.subtract(ours, theirs))), reach, len(ours))


def _pairs(study: Study, cell: Cell, metric: Metric) -> tuple[list[float], list[float]]:
    """The values of a cell and of its baseline in their common seeds; none for the baseline itself."""
    partner = study.partner.get(cell.label)
    if partner is None or partner == cell.label:
        return [], []
    other = study.cell(partner).runs
    both = [
        (metric.values[run], metric.values[other[seed]])
        for seed, run in cell.runs.items()
        if seed in other and run in metric.values and other[seed] in metric.values
    ]
    return [ours for ours, _ in both], [theirs for _, theirs in both]


def _cells(plan: Mapping[str, Any]) -> tuple[Cell, ...]:
    axes = [key for key in plan["axes"] if key not in REPLICATES]
    names = {key: key.rsplit(".", 1)[-1] for key in axes}
    if len(set(names.values())) < len(names):
        names = {key: key for key in axes}
    grouped: dict[str, dict[str, str]] = {}
    values: dict[str, dict[str, Value]] = {}
    for point in plan["points"]:
        own = {key: point["values"][key] for key in axes}
        label = " ".join(f"{names[key]}={shown(value)}" for key, value in own.items()) or "all"
        label += f" ({point['sizes']})" if point["sizes"] else ""
        seed = " ".join(f"{key}={shown(value)}" for key, value in point["values"].items() if key in REPLICATES)
        grouped.setdefault(label, {})[seed] = point["run"]
        values[label] = own
    return tuple(Cell(label, values[label], runs) for label, runs in grouped.items())


def _partners(plan: Mapping[str, Any], cells: Sequence[Cell]) -> dict[str, str]:
    """For every cell the one that differs from it only in having the baseline's values."""
    baseline = {key: value for key, value in plan["baseline"].items() if key not in REPLICATES}
    if not baseline:
        return {}
    moved = {key for group in plan["together"] if set(group) & set(baseline) for key in group}

    def place(values: Mapping[str, Value]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((key, spelling(v)) for key, v in values.items() if key not in moved or key in baseline))

    firsts: dict[tuple[tuple[str, str], ...], str] = {}
    for cell in cells:
        firsts.setdefault(place(cell.values), cell.label)
    found = {cell.label: firsts.get(place({**cell.values, **baseline})) for cell in cells}
    return {label: partner for label, partner in found.items() if partner is not None}


def _metrics(rows: pd.DataFrame) -> tuple[Metric, ...]:
    found = []
    for (name, protocol), group in rows.groupby(["metric", "protocol"], observed=True, sort=False):
        values = dict(zip(group["run"].astype(str), group["value"], strict=True))
        found.append(Metric(str(name), str(protocol), values, str(protocol).startswith(COST_PROTOCOLS)))
    return tuple(found)
