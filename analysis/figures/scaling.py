"""How quality grows with size, data and compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.compute import in_readable_units
from analysis.figures.points import (
    COST_NAMES,
    FEW,
    better,
    draw_points,
    name_points,
    noise_words,
    placed_by,
    seed_words,
)
from analysis.rows import CannotShowError, Rows
from analysis.style import (
    FAINT,
    GREY,
    Label,
    canvas,
    caption,
    colour,
    drawing,
    label_ends,
    plain_log,
    wrapped,
)
from study import stats
from study.comparison import Cell, Metric, spread
from study.results import is_higher_better


@drawing
def power_law(rows: Rows, metric: str = "val_loss", cost: str = "train_pflops") -> Figure:
    """Points against cost on logarithmic axes, with the line through their runs and its 95 % band."""
    chosen, spent = rows.metric(metric), in_readable_units(rows.metric(cost))
    placed = placed_by(rows, chosen, spent)
    figure, axes = canvas(height=3.8)
    noise = spread(rows.study.cells, chosen)
    for shade, is_base in ((colour(0), False), (GREY, True)):
        own = [point for point in placed if (point[0].label in rows.study.baselines) is is_base]
        draw_points(axes, own, chosen, noise, shade)
    fitted = _fit(axes, *_pairs(chosen, spent))
    plain_log(axes, "x")
    plain_log(axes, "y")
    axes.margins(x=0.12)
    axes.set(xlabel=COST_NAMES.get(spent.name, spent.name), ylabel=f"{metric} ({better(metric)})")
    name_points(axes, placed)
    caption(figure, f"{seed_words(rows, chosen)}{fitted} {noise_words(rows, chosen)}")
    return figure


def _pairs(metric: Metric, cost: Metric) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    runs = [run for run in metric.values if run in cost.values and metric.values[run] > 0 < cost.values[run]]
    if not runs:
        raise CannotShowError(f"No run has both {metric.name} and {cost.name} above zero.")
    return np.array([cost.values[run] for run in runs]), np.array([metric.values[run] for run in runs])


def _fit(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """The fitted line, the 95 % band of its mean, and the exponent in words."""
    if len(set(x)) < 3:
        return "Fewer than three costs: no power law is fitted."
    law = stats.power_law(x, y)
    at = np.geomspace(x.min(), x.max(), 50)
    line, below, above = law.at(at)
    axes.fill_between(at, below, above, color=FAINT, lw=0, zorder=0)
    axes.plot(at, line, color=GREY, lw=1, zorder=0)
    low, high = law.exponent_interval
    return f"Line: power law with exponent {law.exponent:.3f} ({low:.3f} to {high:.3f}, 95 %, over {len(x)} runs)."


@drawing
def by_value(rows: Rows, metric: str, key: str) -> Figure:
    """The metric against one numeric axis, such as the number of training images, a line per rest of the point."""
    chosen = rows.metric(metric)
    cells = [cell for cell in rows.study.cells if isinstance(cell.values.get(key), int | float)]
    if not cells:
        raise CannotShowError(f"{rows.name} has no axis {key} with numbers.")
    figure, axes = canvas(height=3.8)
    lines = _lines(cells, chosen, rows, key)
    ends = [_line(axes, line, name, colour(index)) for index, (name, line) in enumerate(lines.items())]
    values = sorted({float(cell.values[key]) for cell in cells})
    if values[0] > 0:
        plain_log(axes, "x", values if len(values) <= FEW else None)
    axes.set(xlabel=key, ylabel=f"{metric} ({better(metric)})")
    if not is_higher_better(metric):
        plain_log(axes, "y")
    label_ends(axes, ends)
    caption(figure, f"{seed_words(rows, chosen)}{noise_words(rows, chosen)}")
    return figure


@dataclass(frozen=True)
class Spot:
    """A point of a line: its place, its mean and how far its interval reaches, and its seeds."""

    x: float
    mean: float
    reach: float
    seeds: tuple[float, ...]


def _lines(cells: Sequence[Cell], metric: Metric, rows: Rows, key: str) -> dict[str, list[Spot]]:
    """Spots by what else the cells say of themselves, by rising x."""
    deviation, freedom = spread(rows.study.cells, metric)
    lines: dict[str, list[Spot]] = {}
    for cell in sorted(cells, key=lambda cell: float(cell.values[key])):
        seeds = tuple(metric.values[run] for run in cell.runs.values() if run in metric.values)
        rest = " ".join(str(value) for name, value in cell.values.items() if name != key) or metric.name
        reach = stats.t_quantile(freedom) * deviation / math.sqrt(len(seeds)) if freedom and seeds else 0.0
        if seeds:
            lines.setdefault(rest, []).append(Spot(float(cell.values[key]), float(np.mean(seeds)), reach, seeds))
    return lines


def _line(axes: Axes, line: Sequence[Spot], name: str, shade: str) -> Label:
    x, mean, reach = (np.array([getattr(spot, name) for spot in line]) for name in ("x", "mean", "reach"))
    seeds = [(spot.x, seed) for spot in line for seed in spot.seeds]
    axes.plot(*zip(*seeds, strict=True), ".", color=shade, alpha=0.4, markeredgewidth=0)
    axes.vlines(x, mean - reach, mean + reach, color=shade, lw=0.9)
    axes.plot(x, mean, "o-", color=shade)
    return Label(line[-1].x, line[-1].mean, wrapped(name, 22, 2), shade)
