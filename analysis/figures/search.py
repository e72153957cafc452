"""What a search tried, and which of its dials mattered."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.points import better
from analysis.rows import CannotShowError
from analysis.style import FAINT, GREY, canvas, caption, colour, drawing, plain_log
from study.results import is_higher_better

NOTHING = "No search was run yet: a sweep file with a search block, such as sweeps/tune_lr.yaml, runs one."


@drawing
def search_history(trials: pd.DataFrame, metric: str = "value") -> Figure:
    """Trials in order and the best so far; `trials` has trial, value and state (complete, pruned, failed)."""
    if trials.empty:
        raise CannotShowError(NOTHING)
    whole = trials[trials["state"] == "complete"].sort_values("trial")
    figure, axes = canvas(height=3.2)
    axes.plot(whole["trial"], whole["value"], "o", color=colour(0), alpha=0.6, markeredgewidth=0)
    best = np.maximum if is_higher_better(metric) else np.minimum
    axes.step(whole["trial"], best.accumulate(whole["value"]), where="post", color=colour(1))
    for state, marker in (("pruned", "|"), ("failed", "x")):
        lost = trials[trials["state"] == state]
        axes.plot(lost["trial"], [0.03] * len(lost), marker, color=GREY, transform=axes.get_xaxis_transform())
    if len(whole) and (whole["value"] > 0).all():
        plain_log(axes, "y")
    axes.set(xlabel="trial", ylabel=f"{metric} ({better(metric)})")
    counts = trials["state"].value_counts()
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    caption(figure, f"{told}. Dots: trials, one run each, so without interval; step: the best so far; at the foot: "
            "| pruned, x failed.")  # fmt: skip
    return figure


@drawing
def importances(found: pd.DataFrame) -> Figure:
    """Share of the spread between trials that each dial explains; `found` has key, importance, low, high."""
    if found.empty:
        raise CannotShowError(NOTHING)
    ordered = found.sort_values("importance").reset_index(drop=True)
    figure, axes = canvas(height=1.1 + 0.3 * len(ordered))
    axes.barh(ordered.index, ordered["importance"], color=FAINT)
    axes.hlines(ordered.index, ordered["low"], ordered["high"], color=colour(0))
    axes.plot(ordered["importance"], ordered.index, "o", color=colour(0))
    axes.set_yticks(list(ordered.index), list(ordered["key"]))
    axes.set(xlabel="share of the spread between trials", xlim=(0, None))
    caption(figure, "Lines: 95 % intervals, trials redrawn. A dial that does nothing has a share above 0 too.")
    return figure
