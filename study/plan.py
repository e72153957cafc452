"""From a sweep file to the runs it means: composed, validated, identified; and what is already done of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from study.compose import DEFAULTS, compose_tree, options
from study.config import WITHOUT_MEANING, RunConfig, from_dict, run_id
from study.equal_compute import EqualCompute, partner_values
from study.lease import newest
from study.run_directory import RESUMED, RunDirectory, State, Status
from study.strict import ConfigError, nearest, unknown_key
from study.sweep_file import Condition, Sweep, Value, same_value, shown
from study.tuned import Tuned, described


class Standing(StrEnum):
    """What is left to do of a run."""

    NEW = "new"
    UNFINISHED = "to continue"
    UNSCORED = "to score"  # done, but not by every metric asked for
    DONE = "done"
    FAILED = "failed"
    ELSEWHERE = "running elsewhere"


@dataclass(frozen=True)
class Point:
    """One cell of the sweep, and the run that fills it."""

    values: Mapping[str, Value]  # by axis
    config: RunConfig
    sizes: Mapping[str, int] = field(default_factory=dict)  # solved for by `match`

    @cached_property
    def run(self) -> str:
        return run_id(self.config)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.config.results, self.run)


@dataclass(frozen=True)
class Plan:
    """Every run of a sweep, each valid, no two the same."""

    sweep: Sweep
    points: tuple[Point, ...]

    @property
    def results(self) -> Path:
        return Path(self.points[0].config.results)

    @property
    def folder(self) -> Path:
        """Where what belongs to the sweep as a whole goes."""
        return self.results / self.sweep.name

    @cached_property
    def labels(self) -> dict[str, str]:
        """A short name for every axis: the last part of its key, unless two share it."""
        return short_names(self.sweep.keys)

    def label(self, point: Point) -> str:
        return " ".join(f"{self.labels[key]}={shown(value)}" for key, value in point.values.items())

    def sizes(self, point: Point) -> str:
        """What `match` made of the point, for tables."""
        return " ".join(f"{key.removeprefix('backbone.')}={value}" for key, value in point.sizes.items())

    def as_tree(self) -> dict[str, Any]:
        """What `results/<sweep>/plan.json` holds: enough to read the results without composing anything."""
        return {
            "sweep": self.sweep.name,
            "question": self.sweep.question,
            "axes": {key: list(self.sweep.values_of(key)) for key in self.sweep.keys},
            "together": [list(axes.values) for axes in self.sweep.axes],
            "baseline": dict(self.sweep.baseline),
            **({"settings": described(self.sweep, self.results)} if self.sweep.tuned else {}),
            "points": [
                {
                    "run": point.run,
                    "label": self.label(point),
                    "values": dict(point.values),
                    "sizes": self.sizes(point),
                }
                for point in self.points
            ],
        }


def make_plan(sweep: Sweep) -> Plan:
    """All points of the sweep; one ConfigError with a line for every kind of fault among them."""
    if sweep.search:
        raise sweep.source.error(("search",), "search: its points are not known beforehand: there is no plan")
    check_defaults(sweep)
    steps = expand(sweep)
    if not steps:
        raise sweep.source.error(("where",), "where: and exclude: leave no point")
    trees = Trees(sweep)
    _check_axes(sweep, trees)
    points, faults = [], Faults(sweep)
    for values in steps:
        try:
            points.append(trees.point(values))
        except ConfigError as error:
            faults.add(str(error), values)
    faults.raise_any(len(steps))
    _check_distinct(sweep, points)
    if sweep.baseline and not any(is_baseline(sweep, point.values) for point in points):
        raise sweep.source.error(("baseline",), "baseline: matches no point that where: and exclude: leave")
    _check_baseline(sweep)
    return Plan(sweep, tuple(points))


def expand(sweep: Sweep) -> list[dict[str, Value]]:
    """Every combination of the axes' values that `where` and `exclude` leave, the last axis moving fastest."""
    combinations = (
        {key: value for step in steps for key, value in step.items()}
        for steps in product(*(axes.steps() for axes in sweep.axes))
    )
    return [
        values
        for values in combinations
        if (not sweep.where or any(holds(condition, values) for condition in sweep.where))
        and not any(holds(condition, values) for condition in sweep.exclude)
    ]


def holds(condition: Condition, values: Mapping[str, Value]) -> bool:
    return all(any(same_value(values[key], wanted) for wanted in listed) for key, listed in condition.items())


def is_baseline(sweep: Sweep, values: Mapping[str, Value]) -> bool:
    return all(same_value(values[key], value) for key, value in sweep.baseline.items())


def standing(point: Point) -> tuple[Standing, State]:
    """What the files say about a run at this moment."""
    state = point.directory.read_state()
    if state.status is Status.DONE:
        return (Standing.UNSCORED if _lacks_scores(point) else Standing.DONE), state
    claim = newest(point.directory.path)
    if claim is not None and claim.held:
        return Standing.ELSEWHERE, state
    if state.status is Status.FAILED and state.failure not in RESUMED:
        return Standing.FAILED, state
    return (Standing.UNFINISHED if state.attempts else Standing.NEW), state


def _lacks_scores(point: Point) -> bool:
    """Scores are no part of a run's identity: another sweep may have done it without, or by other metrics."""
    if not point.config.score.metrics:
        return False
    from study.score_again import lacks_scores

    try:
        return lacks_scores(point.config, point.directory)
    except ConfigError:
        raise
    except ValueError as error:  # its rows are damaged
        raise ConfigError(str(error)) from error


def short_names(keys: list[str]) -> dict[str, str]:
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


class Trees:
    """Plain config trees: hydra composes each combination of presets once, points are copies with fields set."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._composed: dict[tuple[str, ...], dict[str, Any]] = {}
        self._equal = EqualCompute(sweep) if sweep.match else None
        self._tuned = Tuned(sweep) if sweep.tuned else None

    def base(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Presets and overrides, before the fields of a point."""
        chosen = {**self.sweep.defaults, **{group: str(values[group]) for group in DEFAULTS if group in values}}
        words = tuple(f"{group}={preset}" for group, preset in chosen.items())
        if words not in self._composed:
            tree = compose_tree(words)
            for key, value in self.sweep.overrides.items():
                put(tree, key, value)
            self._composed[words] = tree
        return self._composed[words]

    def point(self, values: Mapping[str, Value]) -> Point:
        tree = self.tree(values)
        config = from_dict(tree)
        if self._equal is None:
            return Point(values, config)
        baseline = from_dict(self.tree(partner_values(self.sweep, values)))
        sizes = self._equal.sizes(config, tree, baseline)
        for key, value in sizes.items():
            put(tree, key, value)
        return Point(values, from_dict(tree), sizes)

    def tree(self, values: Mapping[str, Value]) -> dict[str, Any]:
        tree = copy.deepcopy(self.base(values))
        for key, value in values.items():
            if key not in DEFAULTS:
                put(tree, key, value)
        if self._tuned is not None:
            for key, value in self._tuned.values(tree, self._presets(values)).items():
                if key not in values and key not in self.sweep.overrides:
                    put(tree, key, value)
        return tree

    def _presets(self, values: Mapping[str, Value]) -> dict[str, str]:
        return {**DEFAULTS, **self.sweep.defaults, **{key: str(values[key]) for key in DEFAULTS if key in values}}


def put(tree: dict[str, Any], key: str, value: Value) -> None:
    """Set a dotted key; `from_dict` judges whether there is such a key."""
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if not isinstance(inner, dict):
            inner = tree[parent] = {}
        tree = inner
    tree[leaf] = list(value) if isinstance(value, tuple) else value


def leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Every dotted key that holds a value."""
    for key, value in tree.items():
        here = f"{where}.{key}" if where else key
        if isinstance(value, Mapping):
            yield from leaves(value, here)
        else:
            yield here


class Faults:
    """Bad points, gathered by what is wrong with them."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._points: dict[str, list[Mapping[str, Value]]] = {}

    def add(self, message: str, values: Mapping[str, Value]) -> None:
        self._points.setdefault(message, []).append(values)

    def raise_any(self, total: int) -> None:
        if self._points:
            raise ConfigError("\n".join(self._line(message, total) for message in self._points))

    def _line(self, message: str, total: int) -> str:
        points = self._points[message]
        if len(points) == total:
            where = "every point"
        else:
            names = short_names(self.sweep.keys)
            told = ["(" + " ".join(f"{names[k]}={shown(v)}" for k, v in values.items()) + ")" for values in points]
            more = f" and {len(told) - 4} more" if len(told) > 4 else ""
            where = f"{len(points)} of {total} points: {', '.join(told[:4])}{more}"
        return str(self.sweep.source.error(self._place(message, points[0]), f"{message} [{where}]"))

    def _place(self, message: str, values: Mapping[str, Value]) -> tuple[str | int, ...]:
        """The entry of the file that the complaint is about, as far as it names one."""
        named = set(re.findall(r"[\w.]*\w", message))
        if message.startswith("match: "):
            return ("match",)
        keys = [key for key in [*values, *self.sweep.overrides] if key in named]
        keys = keys or [key for key in values if key.rsplit(".", 1)[-1] in named or f"{key}s.data" in named]
        key = next(iter(keys), "")
        if key in self.sweep.overrides:
            return ("overrides", key)
        if key not in values:
            return ("axes",)
        index = [same_value(value, values[key]) for value in self.sweep.values_of(key)].index(True)
        return (*self.sweep.place(key), index)


def check_defaults(sweep: Sweep) -> None:
    """Every group and preset named in `defaults`, and every preset on an axis, is known."""
    for group, preset in sweep.defaults.items():
        places = [place for place in sweep.source.lines if place[:1] == ("defaults",) and place[-1] == group]
        place = min(places, key=len, default=("defaults",))  # the command line's has no index
        if group not in DEFAULTS:
            raise sweep.source.error(place, f"defaults: {unknown_key(group, list(DEFAULTS))}")
        known = list(options(group))
        if preset not in known:
            raise sweep.source.error(place, f"defaults: {group}={preset} is not a preset{nearest(preset, known)}")
    for key in sweep.overrides:
        if key in DEFAULTS:
            raise sweep.source.error(("overrides", key), f"overrides: {key} is a group of presets: put it in defaults:")


def _check_axes(sweep: Sweep, trees: Trees) -> None:
    """Every axis names a group of presets, or a field that at least one combination of presets has."""
    for key in sweep.keys:
        place = sweep.place(key)
        section = key.split(".")[0]
        if section in WITHOUT_MEANING and section != "seed":
            raise sweep.source.error(place, f"axis {key} changes no number: all of its points would be one run")
        if key in DEFAULTS:
            known = list(options(key))
            for value in sweep.values_of(key):
                if str(value) not in known:
                    raise sweep.source.error(
                        place, f"axis {key}: {shown(value)} is not a preset{nearest(str(value), known)}"
                    )
    groups = [key for key in sweep.keys if key in DEFAULTS]
    known = sorted({leaf for values in _group_choices(sweep, groups) for leaf in leaves(trees.base(values))})
    for key in sweep.keys:
        if key not in DEFAULTS and key not in known:
            raise sweep.source.error(sweep.place(key), f"axis {key} names no field{_near(key, known)}")


def _group_choices(sweep: Sweep, groups: list[str]) -> list[dict[str, Value]]:
    """Combinations of presets that occur."""
    choices: list[dict[str, Value]] = []
    for values in expand(sweep):
        chosen = {group: values[group] for group in groups}
        if chosen not in choices:
            choices.append(chosen)
    return choices


def _near(key: str, known: list[str]) -> str:
    hint = nearest(key, known)
    section = key.split(".")[0]
    if "did you mean" in hint:
        return hint
    fields = [name for name in known if name.startswith(f"{section}.")]
    return f"; {section} has {', '.join(fields)}" if fields else f"; sections: {', '.join(DEFAULTS)}, seed, seeds"


def _check_baseline(sweep: Sweep) -> None:
    """Of axes that move together it must name one entry, or a point would have several to be compared with."""
    for axes in sweep.axes:
        named = {key: value for key, value in sweep.baseline.items() if key in axes.values}
        steps = [step for step in axes.steps() if all(same_value(step[key], value) for key, value in named.items())]
        if named and len(steps) > 1:
            rest = ", ".join(key for key in axes.values if key not in named)
            told = ", ".join(f"{key}={shown(value)}" for key, value in named.items())
            raise sweep.source.error(
                ("baseline",), f"baseline: {told} matches {len(steps)} entries of zip; name {rest} as well"
            )


def _check_distinct(sweep: Sweep, points: list[Point]) -> None:
    seen: dict[str, Point] = {}
    names = short_names(sweep.keys)
    for point in points:
        other = seen.setdefault(point.run, point)
        if other is not point:
            told = [" ".join(f"{names[k]}={shown(v)}" for k, v in p.values.items()) for p in (other, point)]
            raise sweep.source.error(
                ("axes",), f"two points are one and the same run {point.run}: ({told[0]}), ({told[1]})"
            )
