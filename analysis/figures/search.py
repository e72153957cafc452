"""What a search tried, and which of its dials mattered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.points import better
from analysis.rows import CannotShowError
from analysis.style import FAINT, GREY, MARKERS, canvas, caption, colour, drawing, plain_log
from study.results import is_higher_better

NOTHING = "No search was run yet: a sweep file with a search block, such as sweeps/tune_lr.yaml, runs one."
MARKS = {"pruned": "|", "failed": "x", "infeasible": "+"}
USUAL = ("pruned", "failed")
MOST_DIALS = 6
MOST_TICKS = 6  # of a dial with few whole values, each of them
WIDE = 8  # times the least value: from there a dial is drawn on a logarithmic axis


@drawing
def search_history(trials: pd.DataFrame, metric: str = "value") -> Figure:
    """Trials in order and the best so far; `trials` has trial, value and state (complete, or one of `MARKS`)."""
    if trials.empty:
        raise CannotShowError(NOTHING)
    whole = trials[trials["state"] == "complete"].sort_values("trial")
    figure, axes = canvas(height=3.2)
    axes.plot(whole["trial"], whole["value"], "o", color=colour(0), alpha=0.6, markeredgewidth=0)
    best = np.maximum if is_higher_better(metric) else np.minimum
    axes.step(whole["trial"], best.accumulate(whole["value"]), where="post", color=colour(1))
    counts = trials["state"].value_counts()
    marks = {state: mark for state, mark in MARKS.items() if state in USUAL or state in counts}
    for state, marker in marks.items():
        lost = trials[trials["state"] == state]
        axes.plot(lost["trial"], [0.03] * len(lost), marker, color=GREY, transform=axes.get_xaxis_transform())
    if len(whole) and (whole["value"] > 0).all():
        plain_log(axes, "y")
    axes.set(xlabel="trial", ylabel=f"{metric} ({better(metric)})")
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    caption(figure, f"{told}. Dots: trials, one run each, so without interval; step: the best so far; at the foot: "
            f"{', '.join(f'{mark} {state}' for state, mark in marks.items())}.")  # fmt: skip
    return figure


@drawing
def slices(found: pd.DataFrame, metric: str = "value") -> Figure:
    """A panel per dial: each trial's value against where the dial stood. `found` has trial, value and the dials.

    Of families searched side by side each has its colour.
    """
    dials = [key for key in found.columns.drop(["trial", "value"]) if found[key].nunique() > 1]
    families = list(dict.fromkeys(found["backbone"])) if "backbone" in dials and len(dials) > 1 else []
    dials = [key for key in dials if not families or key != "backbone"][:MOST_DIALS]
    if not dials:
        raise CannotShowError(NOTHING if found.empty else "All trials have the same settings: there is no slice.")
    columns = min(2, len(dials))
    rows = -(-len(dials) // columns)
    figure, panels = canvas(columns, rows, height=2.4 * rows + 1.2, sharey=True)
    spare = list(np.ravel(panels))
    for key in dials:
        _slice(spare.pop(0), found, key, families)
    for axes in spare:
        axes.set_visible(False)
    first = np.ravel(panels)[0]
    first.set_ylabel(f"{metric} ({better(metric)})")
    if families:
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    caption(figure, "Dots: finished trials, one run each, so without interval. The other dials move along: a slope "
            "here need not be this dial's doing.")  # fmt: skip
    return figure


def _slice(axes: Axes, found: pd.DataFrame, key: str, families: Sequence[str]) -> None:
    places = pd.to_numeric(found[key], errors="coerce")
    names = sorted(found[key].astype(str).unique()) if places.isna().any() else []
    if names:
        places = found[key].astype(str).map(names.index)
    for index, family in enumerate(families or [""]):
        mine = found["backbone"] == family if family else slice(None)
        mark = MARKERS[index % len(MARKERS)]
        axes.plot(places[mine], found["value"][mine], mark, color=colour(index), alpha=0.7, label=family,
                  markeredgewidth=0)  # fmt: skip
    if names:
        axes.set_xticks(range(len(names)), names)
    elif places.nunique() <= MOST_TICKS and (places % 1 == 0).all():
        axes.set_xticks(sorted(places.unique()))
    elif places.min() > 0 and places.max() > WIDE * places.min():
        plain_log(axes, "x")
    axes.set_xlabel(key)


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
