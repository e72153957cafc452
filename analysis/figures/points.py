"""The points of a study side by side: values with their seeds, and differences to the baseline with their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.compute import in_readable_units
from analysis.rows import CannotShowError, Rows, brief
from analysis.style import (
    FAINT,
    GREY,
    INK,
    Label,
    canvas,
    caption,
    colour,
    drawing,
    label_points,
    plain_log,
    wrapped,
)
from study.comparison import Cell, Estimate, Metric, differences, mean_of, spread, values_of
from study.results import is_higher_better
from study.stats import pareto_front, t_quantile

MOST = 40  # points in one figure
FEW = 16  # points that can all be named, where there is room
SURE = 8  # and that are, room or not


def better(metric: str) -> str:
    return "higher is better" if is_higher_better(metric) else "lower is better"


@drawing
def points(rows: Rows, metric: str) -> Figure:
    """Per point: its seeds, mean and interval; beside it the paired difference to the baseline."""
    return points_of(rows, rows.metric(metric))


@drawing
def points_of(rows: Rows, metric: Metric, note: str = "") -> Figure:
    """The same for a metric read some other way, such as at equal compute."""
    cells = shown_cells(rows, metric)
    apart = differences(rows.study, metric)
    compared = any(apart.values())
    names = [wrapped(_named(rows, cell)) for cell in cells]
    height = 1.35 + 0.16 * sum(1.0 + name.count("\n") + 1 for name in names)
    figure, axes = canvas(2 if compared else 1, height=height, width=7.4, sharey=True)
    left = axes[0, 0] if compared else axes
    _draw_values(left, rows, cells, metric)
    left.set_yticks(range(len(cells)), names)
    left.set_title(f"{metric.name}{note}\n({better(metric.name)})")
    how = "Dots: seeds; bars: means; lines: 95 % intervals of the mean, from a point's own seeds, cut at the frame."
    if compared:
        _draw_differences(axes[0, 1], rows, cells, apart)
        how += " Right: means of differences paired by seed, with the spread of all points pooled."
    caption(figure, " ".join([how, *_floor(rows, metric)]))
    return figure


def _floor(rows: Rows, metric: Metric) -> list[str]:
    """What real images score: no network can be expected to do better."""
    floor = rows.study.floor(metric)
    return [] if floor is None else [f"{floor.label.capitalize()}, held out, score {floor.value:.3g}."]


def shown_cells(rows: Rows, metric: Metric) -> list[Cell]:
    """All cells, or the best MOST of them."""
    if not rows.study.cells:
        raise CannotShowError(rows.remarks[0] if rows.remarks else f"{rows.name} has no points.")
    if len(rows.study.cells) <= MOST:
        return list(rows.study.cells)
    means = {cell.label: estimate.mean for cell in rows.study.cells if (estimate := mean_of(cell, metric))}
    best = sorted(means, key=lambda label: means[label], reverse=is_higher_better(metric.name))[:MOST]
    return [cell for cell in rows.study.cells if cell.label in {*best, *rows.study.baselines}]


def _draw_values(axes: Axes, rows: Rows, cells: Sequence[Cell], metric: Metric) -> None:
    seen = [value for cell in cells for run in cell.runs.values() if (value := metric.values.get(run)) is not None]
    for line, cell in enumerate(cells):
        values = [metric.values[run] for run in cell.runs.values() if run in metric.values]
        estimate = mean_of(cell, metric)
        shade = GREY if cell.label in rows.study.baselines else colour(0)
        axes.plot(values, [line] * len(values), "o", color=shade, alpha=0.55, markeredgewidth=0)
        if estimate is not None:
            axes.plot([estimate.mean], [line], "|", color=shade, markersize=13, markeredgewidth=2)
            _interval(axes, estimate, line, shade)
        if lost := rows.missing(cell):
            _say_missing(axes, line, f"missing: {lost}", at_left=not values)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(metric.name)
    if seen:
        reach = 0.35 * ((max(seen) - min(seen)) or abs(max(seen)) or 1)
        axes.set_xlim(min(seen) - reach, max(seen) + reach)  # an interval that goes on is cut at the frame
    axes.locator_params(axis="x", nbins=4)


def _named(rows: Rows, cell: Cell) -> str:
    return f"{cell.label} (baseline)" if cell.label in rows.study.baselines else cell.label


def _interval(axes: Axes, estimate: Estimate, line: float, shade: str) -> None:
    if estimate.reach is not None:
        axes.plot([estimate.mean - estimate.reach, estimate.mean + estimate.reach], [line] * 2, color=shade, lw=1)


def _say_missing(axes: Axes, line: int, text: str, at_left: bool) -> None:
    x, side = (0.02, "left") if at_left else (0.98, "right")
    axes.text(x, line + 0.33 * (not at_left), text, transform=axes.get_yaxis_transform(), ha=side, va="center",
              color="#b03a2e", fontsize=7.5)  # fmt: skip


def _draw_differences(axes: Axes, rows: Rows, cells: Sequence[Cell], apart: Mapping[str, Estimate | None]) -> None:
    axes.axvline(0, color=FAINT, zorder=0)
    for line, cell in enumerate(cells):
        estimate = apart.get(cell.label)
        if estimate is None:
            continue
        told = estimate.beyond_noise
        axes.plot([estimate.mean], [line], "o", color=colour(1) if told else GREY, mfc=None if told else "white")
        _interval(axes, estimate, line, colour(1) if told else GREY)
        axes.annotate(_verdict(estimate), (1, line), (4, 0), xycoords=("axes fraction", "data"),
                      textcoords="offset points", va="center", fontsize=8, color=INK if told else GREY,
                      annotation_clip=False)  # fmt: skip
    axes.set_title("difference\nto the baseline")
    axes.set_xlabel("difference")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.1)


def _verdict(estimate: Estimate) -> str:
    if estimate.reach is None:
        return f"{estimate.mean:+.3g}, one seed"
    return f"{estimate.mean:+.3g}" + ("" if estimate.beyond_noise else "  within noise")


@drawing
def tradeoff(rows: Rows, metric: str, cost: str = "gmacs") -> Figure:
    """Quality against what it costs, with the front of points that none beats in both."""
    chosen, spent = rows.metric(metric), in_readable_units(rows.metric(cost))
    placed = placed_by(rows, chosen, spent)
    figure, axes = canvas(height=3.8)
    prices, qualities = [price.mean for _, price, _ in placed], [quality.mean for *_, quality in placed]
    unnamed = _draw_tradeoff(axes, rows, placed, front_of(prices, qualities, is_higher_better(metric)), chosen)
    axes.set_xlabel(COST_NAMES.get(spent.name, spent.name))
    axes.set_ylabel(f"{metric} ({better(metric)})")
    names = "Not all points are named. " if unnamed else ""
    told = f"{names}{seed_words(rows, chosen)}{noise_words(rows, chosen)}"
    caption(figure, f"Line: points that no other beats in both. {told}")
    return figure


Placed = tuple[Cell, Estimate, Estimate]  # a cell, its cost, its quality


def placed_by(rows: Rows, metric: Metric, cost: Metric) -> list[Placed]:
    """Every cell that has both."""
    placed = [
        (cell, price, quality)
        for cell in rows.study.cells
        if (price := mean_of(cell, cost)) is not None and (quality := mean_of(cell, metric)) is not None
    ]
    if not placed:
        raise CannotShowError(f"No point of {rows.name} has both {metric.name} and {cost.name}.")
    return placed


def name_points(axes: Axes, placed: Sequence[Placed], most: int = FEW) -> int:
    """Names beside the points: of many, where there is room; of too many, beside some, evenly chosen.

    How many have none is returned.
    """
    named = placed if len(placed) <= most else placed[:: math.ceil(len(placed) / most)]
    labels = [Label(p.mean, q.mean, wrapped(brief(cell.label), 24, 2)) for cell, p, q in named]
    left_out = label_points(axes, labels, all_of_them=len(placed) <= SURE)
    return len(placed) - len(named) + left_out


def seed_words(rows: Rows, metric: Metric) -> str:
    """Of the small dots, where there are any that no mean covers."""
    several = any(len(values_of(cell, metric)) > 1 for cell in rows.study.cells)
    return "Small dots: seeds. " if several else ""


def noise_words(rows: Rows, metric: Metric) -> str:
    _, freedom = spread(rows.study.cells, metric)
    if freedom:
        return (
            "Bars: 95 % intervals for comparing points: what a seed does to all of them alike is left out. "
            "Intervals of the means themselves are wider: see the tables."
        )
    return "One run per point: no interval can be given."


COST_NAMES = {
    "gmacs": "GMACs per image (the papers' Gflops)",
    "params": "parameters",
    "train_seconds": "seconds of training on this machine",
}


def front_of(costs: Sequence[float], qualities: Sequence[float], higher: bool) -> list[int]:
    """Indices of the points that no other beats in cost and quality, by rising cost."""
    front = pareto_front(costs, [-quality if higher else quality for quality in qualities]).by_mean
    return sorted(np.flatnonzero(front).tolist(), key=lambda index: costs[index])


def _draw_tradeoff(axes: Axes, rows: Rows, placed: Sequence[Placed], front: Sequence[int], metric: Metric) -> int:
    """How many points have no name beside them is returned."""
    ahead = [placed[index] for index in front]
    axes.plot(
        [price.mean for _, price, _ in ahead], [good.mean for *_, good in ahead], color=colour(0), lw=1, alpha=0.7
    )
    noise = spread(rows.study.cells, metric)
    draw_points(axes, [placed[i] for i in sorted(set(range(len(placed))) - set(front))], metric, noise, GREY)
    draw_points(axes, ahead, metric, noise, colour(0))
    costs = [price.mean for _, price, _ in placed]
    axes.margins(x=0.15)
    if max(costs) > 3 * min(costs) > 0:
        axes.set_xscale("log")
        plain_log(axes, "x")
    if len(placed) <= FEW:
        return name_points(axes, placed)
    return len(placed) - len(ahead) + name_points(axes, ahead)


def draw_points(axes: Axes, placed: Sequence[Placed], metric: Metric, noise: tuple[float, int], shade: str) -> None:
    """Seeds, intervals and means, all of one colour at once: there may be a thousand."""
    deviation, freedom = noise
    seeds = [[metric.values[run] for run in cell.runs.values() if run in metric.values] for cell, *_ in placed]
    x, y = np.array([p.mean for _, p, _ in placed]), np.array([q.mean for *_, q in placed])
    counts = np.array([len(values) for values in seeds], dtype=int)
    reach = t_quantile(freedom) * deviation / np.sqrt(counts) if freedom else np.zeros(len(placed))
    axes.plot(np.repeat(x, counts), [v for values in seeds for v in values], ".", color=shade, alpha=0.35, mew=0)
    axes.vlines(x, y - reach, y + reach, color=shade, lw=0.9)
    axes.plot(x, y, "o", color=shade)


def relative(estimate: Estimate | None, base: float) -> tuple[float, float]:
    """A difference and its reach in percent of the baseline; NaN where there is none."""
    if estimate is None or not base:
        return math.nan, math.nan
    reach = np.nan if estimate.reach is None else estimate.reach
    return 100 * estimate.mean / base, 100 * float(reach) / abs(base)
