"""What a table of pooled intervals must add: verdicts that rest on pooling, and noise that no interval holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.comparison import Estimate, Metric, Study, differences, mean_of, own_difference, values_of
from study.stats import bartlett

ALPHA = 0.05
LEAST_POINTS = 3  # of two points the pooled spread is that of their own pairs
NAMED = 4  # points that one line names


def pooling(study: Study, metric: Metric) -> list[str]:
    """One line where spreads differ from point to point, or where a point's own pairs give the other verdict."""
    apart = differences(study, metric)
    told = [*_unequal_spreads(study, metric, apart), *_other_verdicts(study, metric, apart)]
    return [f"{metric.name}: {'; '.join(told)}."] if told else []


def _unequal_spreads(study: Study, metric: Metric, apart: Mapping[str, Estimate | None]) -> list[str]:
    groups = [values for cell in study.cells if len(values := values_of(cell, metric)) > 1]
    found = bartlett(groups) if len(groups) >= LEAST_POINTS else None
    compared = any(one is not None and one.reach is not None for one in apart.values())
    if found is None or found.p >= ALPHA or not compared:
        return []
    return [
        f"spreads differ from point to point (Bartlett p {found.p:.2g}; {found.least:.2g} to {found.most:.2g}): "
        "pooled reaches are too narrow for the noisier"
    ]


def _other_verdicts(study: Study, metric: Metric, apart: Mapping[str, Estimate | None]) -> list[str]:
    """Points that are told from their baseline by the pooled interval or by their own pairs', but not by both."""
    lost: list[str] = []
    won: list[str] = []
    for cell in study.cells:
        pooled, own = apart[cell.label], own_difference(study, cell, metric)
        if pooled is None or pooled.reach is None or own is None or own.reach is None:
            continue
        if pooled.beyond_noise != own.beyond_noise:
            (lost if pooled.beyond_noise else won).append(f"{cell.label} (±{own.reach:.2g})")
    lines = {"not told apart": lost, "told apart": won}
    return [f"from its own pairs alone {verdict}: {_listed(points)}" for verdict, points in lines.items() if points]


def _listed(points: Sequence[str]) -> str:
    rest = len(points) - NAMED
    return ", ".join(points[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def starting_noises(study: Study, metrics: Sequence[Metric]) -> list[str]:
    """Of scores of samples that every run drew from the same noises: no interval over seeds holds what others do."""
    if not study.same_noises:
        return []
    names = [
        metric.name
        for metric in metrics
        if metric.is_of_samples and any((mean := mean_of(cell, metric)) and mean.reach for cell in study.cells)
    ]
    if not names:
        return []
    return [
        f"{', '.join(dict.fromkeys(names))}: intervals are over training seeds with one set of starting noises "
        "(sample.seed is the same for every run); other noises can move scores by more."
    ]
