"""From a trial's values to the runs that answer it, and from their rows to its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Any

from study.config import RunConfig, meaning
from study.estimate import count_parameters, memory_of
from study.plan import Point, Trees
from study.results import read_rows
from study.search.space import Distribution
from study.strict import ConfigError, nearest
from study.sweep_file import REPLICATES, Sweep, shown

BEFOREHAND = ("gmacs", "params", "memory_mib")
"""What is known of a run before it is done, and can keep it from being done."""

ALWAYS = ("val_loss", "params", "gmacs", "train_pflops", "images_per_second", "train_seconds", "peak_mib")
"""Metrics that every run has a row of."""


class TrialPoints:
    """The points of one family: its own value of `per`, the space's of a trial, and every seed."""

    def __init__(self, sweep: Sweep, trees: Trees, family: Mapping[str, Any]) -> None:
        self.sweep, self.trees, self.family = sweep, trees, family
        self._known: dict[tuple[tuple[str, Any], ...], tuple[Point, ...]] = {}

    @property
    def name(self) -> str:
        """Of the search for this family."""
        return " ".join([self.sweep.name, *(shown(value) for value in self.family.values())])

    @property
    def space(self) -> Mapping[str, Distribution]:
        return self.sweep.space

    @cached_property
    def seeds(self) -> list[dict[str, Any]]:
        steps = product(*(axes.steps() for axes in self.sweep.axes if not set(axes.values) & set(self.family)))
        return [{key: value for step in group for key, value in step.items()} for group in steps]

    def points(self, values: Mapping[str, Any]) -> tuple[Point, ...]:
        """One per seed; a ConfigError if there can be no such run."""
        values = {key: legible(value) for key, value in values.items()}
        key = tuple(values.items())
        if key not in self._known:
            self._known[key] = tuple(self.trees.point({**self.family, **values, **seed}) for seed in self.seeds)
        return self._known[key]

    def probe(self) -> Point:
        """Some point; refused if a value at neither end of an axis can be run."""
        ends = [distribution.ends for distribution in self.space.values()]
        corners = [tuple(low for low, _ in ends), tuple(high for _, high in ends)]
        complaints = []
        for corner in [*corners, *product(*ends)][:66]:
            try:
                return self.points(dict(zip(self.space, corner, strict=True)))[0]
            except ConfigError as error:
                complaints.append(str(error))
        place = next((("axes", key) for key in self.space if key in complaints[0]), ("axes",))
        raise self.sweep.source.error(place, f"{complaints[0]} [wherever the search may look]")

    def facts(self) -> dict[str, str]:
        """What trials of one search share, to tell whether it is still the same."""
        tree = meaning(self.probe().config)
        fixed = {key: value for key, value in _leaves(tree) if key not in self.space and not key.startswith("seeds.")}
        return {
            **{key: str(distribution) for key, distribution in self.space.items()},
            **{key: shown([*axes]) for group in self.sweep.axes for key, axes in group.values.items()},
            "objectives": shown(_directions(self.sweep)),
            **_constraints(self.sweep),
            **{key: shown(value) for key, value in fixed.items()},
        }


def _directions(sweep: Sweep) -> list[str]:
    assert sweep.search is not None
    return [f"{direction} {metric}" for metric, direction in sweep.search.directions.items()]


def _constraints(sweep: Sweep) -> dict[str, str]:
    """Trials are judged once, when they end."""
    assert sweep.search is not None
    return {f"constraints.{metric}": shown(bound) for metric, bound in sweep.search.bounds.items()}


def legible(value: Any) -> Any:
    """Four digits of a drawn number: a learning rate of 0.0020554062603827007 says no more."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def families(sweep: Sweep) -> list[dict[str, Any]]:
    assert sweep.search is not None
    key = sweep.search.per
    return [{key: value} for value in sweep.values_of(key)] if key else [{}]


def check_axes(sweep: Sweep) -> None:
    """Every axis that is no distribution is the seeds', or the one that families are named by."""
    assert sweep.search is not None
    per = sweep.search.per
    if per and per not in sweep.keys:
        hint = nearest(per, sweep.keys) if sweep.keys else ""
        raise sweep.source.error(("search", "per"), f"search: per={per} is no axis with a list of values{hint}")
    for key in sweep.keys:
        if key != per and key not in REPLICATES:
            raise sweep.source.error(sweep.place(key), f"axis {key} is neither searched, nor a seed, nor search.per")


def produced(config: RunConfig) -> dict[str, str]:
    """Every metric that the run will have a row of, by the names it can be asked for."""
    names = {name: name for name in ALWAYS}
    if config.score.metrics:
        from study.score.foresight import full_name

        for metric in config.score.metrics:
            full = full_name(metric, config.data, config.sample.count)
            names |= {metric: full, full: full}
    bins = (f"val_loss_bin{number}" for number in range(config.train.validate_bins))
    return names | {name: name for name in bins}


def check_metrics(sweep: Sweep, config: RunConfig) -> None:
    """Objectives and constraints are things that runs have."""
    assert sweep.search is not None
    known = produced(config)
    for metric in sweep.search.directions:
        if metric not in known:
            reason = f"search: no run of this sweep produces {metric}{nearest(metric, list(known))}"
            raise sweep.source.error(("search", "objectives"), reason)
    for metric in sweep.search.bounds:
        if metric not in known and metric not in BEFOREHAND:
            reason = f"search: constraint {metric} is no metric of a run{nearest(metric, [*known, *BEFOREHAND])}"
            raise sweep.source.error(("search", "constraints"), reason)


def beforehand(config: RunConfig, metric: str) -> float | None:
    """What can be said of a run that was not done."""
    if metric == "gmacs":
        return config.backbone.macs().total / 1e9
    if metric == "params":
        return float(count_parameters(config.backbone))
    return memory_of(config) / 2**20 if metric == "memory_mib" else None


def measured(points: Sequence[Point], metric: str) -> list[float]:
    """The metric's value of every run that has it, in order."""
    found = []
    for point in points:
        name = produced(point.config).get(metric, metric)
        try:
            rows = read_rows(point.directory.rows)
        except ValueError as error:
            raise ConfigError(
                f"{error} [damaged; remove {point.directory.rows.parent} to have the run done again]"
            ) from error
        found += [row.value for row in rows if row.metric == name][:1]
    return found


def violations_of(
    points: Sequence[Point], bounds: Mapping[str, float], known: Sequence[str] | None = None
) -> dict[str, float]:
    """How far above each bound; with `known`, of those alone, and the rest counts as within."""
    found = {}
    for metric, bound in bounds.items():
        value = None if known is not None and metric not in known else beforehand(points[0].config, metric)
        if value is None and known is None:
            values = measured(points, metric)
            value = fmean(values) if values else None
        found[metric] = 0.0 if value is None else value - bound
    return found


def mean(points: Sequence[Point], metric: str) -> float:
    """Over seeds; NaN would be refused by optuna, so a metric that is missing is a ConfigError."""
    values = measured(points, metric)
    if len(values) < len(points):
        raise ConfigError(f"{len(points) - len(values)} of {len(points)} runs have no row of {metric}")
    return fmean(values)


def without_search(sweep: Sweep) -> Sweep:
    return replace(sweep, search=None, space={})


def _leaves(tree: Mapping[str, Any], where: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        here = f"{where}{key}"
        found += _leaves(value, f"{here}.") if isinstance(value, Mapping) else [(here, value)]
    return found
