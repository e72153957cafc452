"""One figure: time against length with its intervals, and MACs as what was to be expected."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by every eye


def draw_scaling(frame: pd.DataFrame, axis: str, path: Path) -> None:
    """`frame` has series, at, ms, low, high, gmacs and device."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, series) in enumerate(frame.groupby("series", sort=False)):
        colour = COLOURS[number % len(COLOURS)]
        own = series.sort_values("at")
        axes.vlines(own["at"], own["low"], own["high"], color=colour, lw=1)
        axes.plot(own["at"], own["ms"], "o-", color=colour, label=str(name), markersize=4)
        scale = own["ms"].iloc[-1] / own["gmacs"].iloc[-1]
        axes.plot(own["at"], own["gmacs"] * scale, ":", color=colour, lw=1)
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="milliseconds per image")
    ticks = sorted(frame["at"].unique())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(f"{frame['device'].iloc[0]}; bars: 95 % intervals; dotted: MACs through the last point", fontsize=8)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150, format="png")
