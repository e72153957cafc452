"""What a study found, in sentences made of its statistics: the same numbers and verdicts as its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import render, tables
from analysis.figures.points import better
from analysis.render import REACH
from analysis.rows import CannotShowError, Rows, brief
from study.comparison import mean_of

BIN0 = "val_loss_bin0"  # the least noise: detail lost shows here first
FEW = 4  # points that a sentence can name one by one
TOLD = ("better", "worse")


def headline_metrics(rows: Rows) -> list[str]:
    """The first quality metric, the first score of samples, and the loss nearest the clean image."""
    names = rows.quality()
    scores = [name for name in names if not name.startswith("val_loss")]
    has_bin = any(metric.name == BIN0 for metric in rows.study.metrics)
    return list(dict.fromkeys([*names[:1], *([BIN0] if has_bin else []), *scores[:1]]))


def findings(rows: Rows) -> list[str]:
    """A sentence or two per headline metric; what is missing; what the points cost."""
    sentences = []
    for metric in headline_metrics(rows):
        try:
            rows.metric(metric)
        except CannotShowError as reason:
            sentences.append(str(reason))
            continue
        sentences.append(finding(rows, metric))
    return [*sentences, *cost_findings(rows)] or list(rows.remarks)


def finding(rows: Rows, metric: str) -> str:
    """Which points differ from the baseline in this metric, by how much, and which are within noise."""
    frame = tables.comparison(rows, [metric])
    lines = frame.to_dict("records") if "verdict" in frame else []
    compared = [line for line in lines if _is_number(line.get("difference"))]
    if not compared:
        return _without_comparison(rows, metric)
    base = " and ".join(brief(label) for label in sorted(rows.study.baselines))
    told = {verdict: [line for line in compared if line["verdict"] == verdict] for verdict in TOLD}
    rest = [line for line in compared if line["verdict"] not in TOLD]
    if any(not _is_number(line.get(f"difference{REACH}")) for line in compared):
        return f"In {metric} ({better(metric)}) one seed per point cannot tell a difference from noise."
    parts = [_told(verdict, lines, base) for verdict, lines in told.items() if lines]
    unsure = [line for line in rest if "Holm" in str(line["verdict"])]
    noise = [line for line in rest if "Holm" not in str(line["verdict"])]
    parts += [_listed(f"apart from {base} taken singly, but not after Holm's correction", unsure)] if unsure else []
    parts += [_listed(f"within noise of {base}", noise)] if noise else []
    return f"In {metric} ({better(metric)}), {'; '.join(parts)}."


def _told(verdict: str, lines: Sequence[Mapping[Any, Any]], base: str) -> str:
    if len(lines) <= FEW:
        named = ", ".join(f"{brief(str(line['point']))} by {_size(line)}" for line in lines)
        return f"{verdict} than {base} beyond noise: {named}"
    most = max(lines, key=lambda line: abs(line["difference"]))
    return (
        f"{len(lines)} points are {verdict} than {base} beyond noise, most of all {brief(str(most['point']))} "
        f"by {_size(most)}"
    )


def _listed(told: str, lines: Sequence[Mapping[Any, Any]]) -> str:
    if len(lines) > FEW:
        return f"{told}: {len(lines)} points"
    return f"{told}: " + ", ".join(f"{brief(str(line['point']))} ({_size(line, '+')})" for line in lines)


def _size(line: Mapping[Any, Any], sign: str = "") -> str:
    value = float(line["difference"])
    return render.cell(value if sign else abs(value), line[f"difference{REACH}"], sign or None)


def _without_comparison(rows: Rows, metric: str) -> str:
    chosen = rows.metric(metric)
    best = tables.resolved_best(rows.study, chosen)
    if best is not None:
        return f"In {metric} ({better(metric)}), {brief(best)} is the best, told from every other point beyond noise."
    if len(chosen.values) < 2:
        return f"In {metric} one run is all there is: nothing can be compared."
    return f"In {metric} ({better(metric)}), no point is told from all others beyond noise."


def cost_findings(rows: Rows) -> list[str]:
    """MACs of few points as shares of their baselines': exact, so without interval."""
    try:
        gmacs = rows.metric("gmacs")
    except CannotShowError:
        return []
    parts = []
    for cell in rows.study.cells:
        partner = rows.study.partner.get(cell.label)
        own = mean_of(cell, gmacs)
        base = mean_of(rows.study.cell(partner), gmacs) if partner and partner != cell.label else None
        if own is not None and base is not None and base.mean:
            parts.append((brief(cell.label), brief(str(partner)), own.mean / base.mean))
    if not parts or len(parts) > FEW:
        return []
    named = ", ".join(f"{label} takes {share:.0%} of {partner}'s" for label, partner, share in parts)
    return [f"MACs per image: {named}."]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not pd.isna(value) and math.isfinite(value)
