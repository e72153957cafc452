"""The sweep file: what a person writes, read strictly, with the words of the command line on top.

    # Does shortening the dense layers by M cost quality, and what does it save?
    defaults: [backbone: diffussm-tiny, data: digits8, train: quick]
    axes:
      backbone.M: [1, 2, 4]
      seed: [0, 1]
    baseline: {backbone.M: 1}

Here everything is checked that needs no backbone; `study.plan` checks the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from study.atomic import canonical_json
from study.launch.config import LauncherConfig, LocalConfig, SlurmConfig, launcher_from, launcher_tree
from study.marked_yaml import Keys, Marked, dump_yaml, parse_marked, read_marked
from study.search.config import SearchConfig, search_from, search_tree
from study.search.space import Distribution, choices, parse_distribution
from study.stated_speed import StatedSpeed, stated_speed_from, stated_speed_tree
from study.strict import ConfigError, nearest, unknown_key
from study.sweep_words import with_words

if TYPE_CHECKING:  # it reads torch, for which other sweeps need not wait
    from study.bench.block import BenchConfig

POINTS = ("defaults", "overrides", "axes", "zip", "where", "exclude", "match", "baseline")
KEYS = (*POINTS, "launcher", "throughput", "search", "tuned", "bench")
REPLICATES = ("seed", "seeds.data", "seeds.noise", "seeds.init", "sample.seed")
"""Axes whose points are repetitions of one another, to be averaged over."""

UNSEARCHED = ("zip", "where", "exclude", "match", "baseline", "bench")
"""Sections that arrange points listed beforehand, of which a search has none."""

RESERVED = ("runs",)  # names taken in the results folder

Value = Any  # what YAML can write, but no mapping
Block = TypeVar("Block")
Condition = Mapping[str, tuple[Value, ...]]
"""Holds at a point whose value of every key is among those listed."""


@dataclass(frozen=True)
class Axes:
    """Keys that move together: an axis alone, or one group of `zip`. Every key has as many values."""

    values: Mapping[str, tuple[Value, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def steps(self) -> list[dict[str, Value]]:
        return [{key: values[index] for key, values in self.values.items()} for index in range(len(self))]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, and the command line's words, as data."""

    name: str
    axes: tuple[Axes, ...]
    question: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Value] = field(default_factory=dict)
    where: tuple[Condition, ...] = ()
    exclude: tuple[Condition, ...] = ()
    match: Mapping[str, Any] | None = None
    baseline: Mapping[str, Value] = field(default_factory=dict)
    launcher: LauncherConfig = field(default_factory=LocalConfig)
    throughput: StatedSpeed | None = None  # what a plan's hours rest on, if not on this machine's records
    search: SearchConfig | None = None
    space: Mapping[str, Distribution] = field(default_factory=dict)  # where a search looks, by key
    tuned: str = ""  # a search whose best values of each point's family are taken
    bench: BenchConfig | None = None  # how the points' networks are timed, which are then not trained
    source: Marked = field(default_factory=lambda: Marked("the sweep", {}), compare=False)

    @property
    def keys(self) -> list[str]:
        """Every axis, in order."""
        return [key for axes in self.axes for key in axes.values]

    def place(self, key: str) -> Keys:
        """Where the axis is in the file."""
        groups = (axes for axes in self.axes if len(axes.values) > 1)
        return next((("zip", index, key) for index, axes in enumerate(groups) if key in axes.values), ("axes", key))

    def values_of(self, key: str) -> tuple[Value, ...]:
        return next(axes.values[key] for axes in self.axes if key in axes.values)


def read_sweep(path: Path, words: Sequence[str] = ()) -> Sweep:
    """The sweep in a file, named after it, with overrides such as `axes.seed=[0,1,2]` or `train.lr=1e-4`."""
    marked = read_marked(path)
    name = path.stem
    if name in RESERVED or name.startswith((".", "-")) or not name.isprintable():
        raise ConfigError(f"{path}: a sweep cannot be called {name!r}: its results go to a folder of that name")
    sweep = _Reader(with_words(marked, words, KEYS), name, _question(path.read_text(encoding="utf-8"))).sweep()
    if isinstance(sweep.launcher, SlurmConfig) and not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ConfigError(f"{path}: a sweep on a cluster cannot be called {name!r}: must be letters a-z, digits, _ . -")
    return sweep


def parse_sweep(text: str, name: str) -> Sweep:
    return _Reader(parse_marked(text, name), name, _question(text)).sweep()


def to_yaml(sweep: Sweep) -> str:
    """A sweep file that means the same."""
    plain = [axes for axes in sweep.axes if len(axes.values) == 1]
    tree: dict[str, Any] = {
        "defaults": dict(sweep.defaults),
        "overrides": dict(sweep.overrides),
        "axes": {
            **{key: list(values) for axes in plain for key, values in axes.values.items()},
            **{key: _as_axis(distribution) for key, distribution in sweep.space.items()},
        },
        "zip": [{k: list(v) for k, v in axes.values.items()} for axes in sweep.axes if len(axes.values) > 1],
        "where": [{k: list(v) for k, v in condition.items()} for condition in sweep.where],
        "exclude": [{k: list(v) for k, v in condition.items()} for condition in sweep.exclude],
        "match": sweep.match,
        "baseline": dict(sweep.baseline),
        "launcher": launcher_tree(sweep.launcher),
        "throughput": stated_speed_tree(sweep.throughput) if sweep.throughput else None,
        "search": search_tree(sweep.search) if sweep.search else None,
        "tuned": sweep.tuned,
        "bench": _bench_tree(sweep.bench) if sweep.bench else None,
    }
    comment = "".join(f"# {line}\n" for line in sweep.question.splitlines())
    filled = {key: value for key, value in tree.items() if value}
    return comment + dump_yaml(filled)


def same_value(one: Value, other: Value) -> bool:
    """Whether two spellings mean one value: 1 and 1.0 do, 1 and true do not."""
    return spelling(one) == spelling(other)


def distinct(values: Sequence[Value]) -> list[Value]:
    """Without repetitions, which axes that move together may have."""
    return [value for index, value in enumerate(values) if not any(same_value(value, v) for v in values[:index])]


def shown(value: Value) -> str:
    """A value as a table shows it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else canonical_json(value)


def spelling(value: Value) -> str:
    """Equal for equal values."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelling, value)) + "]"
    whole = isinstance(value, float) and value.is_integer()
    return canonical_json(int(value) if whole else value)


def _question(text: str) -> str:
    """The comment that a file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(lines).strip()


class _Reader:
    """One pass over the tree, section by section."""

    def __init__(self, marked: Marked, name: str, question: str) -> None:
        self.marked, self.name, self.question = marked, name, question

    def sweep(self) -> Sweep:
        tree = self.marked.tree
        for key in tree:
            if key not in KEYS:
                raise self._error((key,), str(unknown_key(key, list(KEYS))))
        search = self._search()
        space = self._space(search.per) if search else {}
        axes = (*self._axes(without=space), *self._zip())
        if search and not space:
            raise self._error(("axes",), "axes: nothing to search: give one a distribution, as loguniform(1e-4, 5e-3)")
        if not axes and not search:
            raise self._error((), "no axes: give at least one, such as axes: {seed: [0, 1]}")
        sweep = Sweep(
            name=self.name,
            axes=axes,
            question=self.question,
            defaults=self._defaults(),
            overrides=self._values(("overrides",)),
            match=self._mapping(("match",)) or None,
            baseline=self._values(("baseline",)),
            launcher=self._launcher(),
            throughput=self._throughput(),
            search=search,
            space=space,
            tuned=self._tuned(),
            bench=self._bench(),
            source=self.marked,
        )
        self._check_axes(sweep)
        where, exclude = self._conditions(sweep, "where"), self._conditions(sweep, "exclude")
        return replace(sweep, where=where, exclude=exclude)

    def _error(self, keys: Keys, message: str) -> ConfigError:
        return self.marked.error(keys, message)

    def _at(self, keys: Keys) -> Any:
        tree: Any = self.marked.tree
        for key in keys:
            tree = tree.get(key) if isinstance(tree, Mapping) else tree[key]
        return tree

    def _mapping(self, keys: Keys) -> dict[str, Any]:
        tree = self._at(keys)
        if tree is None:
            return {}
        if not isinstance(tree, dict):
            raise self._error(keys, f"{keys[0]}: must be a mapping, not {tree!r}")
        return tree

    def _defaults(self) -> dict[str, str]:
        """A mapping, or hydra's list of one-entry mappings."""
        given, where = self._at(("defaults",)), ("defaults",)
        if not isinstance(given, list):
            entries: list[tuple[Keys, Any]] = [(where, {key: value}) for key, value in self._mapping(where).items()]
        else:
            entries = [((*where, index), entry) for index, entry in enumerate(given)]
        defaults: dict[str, str] = {}
        for keys, entry in entries:
            if not isinstance(entry, dict) or len(entry) != 1:
                raise self._error(keys, f"defaults: an entry must be `group: preset`, not {entry!r}")
            group, preset = next(iter(entry.items()))
            if group in defaults:
                raise self._error(keys, f"defaults: {group} is given twice")
            if not isinstance(preset, str | int) or isinstance(preset, bool):
                raise self._error((*keys, group), f"defaults: {group} must name a preset, not {preset!r}")
            defaults[group] = str(preset)
        return defaults

    def _values(self, keys: Keys) -> dict[str, Value]:
        values = self._mapping(keys)
        for key, value in values.items():
            if isinstance(value, dict):
                inner = next(iter(value), "...")
                raise self._error((*keys, key), f"{keys[0]}: write {key}.{inner}: with a dot, not a nested mapping")
        return {key: _frozen(value) for key, value in values.items()}

    def _search(self) -> SearchConfig | None:
        if "search" not in self.marked.tree:
            return None
        for section in UNSEARCHED:
            if section in self.marked.tree:
                raise self._error((section,), f"{section}: does not go with search, whose points are not known before")
        return self._block("search", search_from)

    def _bench(self) -> BenchConfig | None:
        if "bench" not in self.marked.tree:
            return None
        from study.bench.block import bench_from

        return self._block("bench", bench_from)

    def _block(self, name: str, read: Callable[[Any], Block]) -> Block:
        """A section with a config of its own; its complaints begin with the key that they are about."""
        try:
            return read(self._at((name,)))
        except ConfigError as error:
            named = re.match(rf"(?:unknown key )?{name}\.(\w+)", str(error))
            raise self._error((name, named[1]) if named else (name,), str(error)) from error

    def _tuned(self) -> str:
        name = self._at(("tuned",))
        if name is not None and not isinstance(name, str):
            raise self._error(("tuned",), f"tuned={name!r} is not valid: must be the name of a search")
        return name or ""

    def _space(self, per: str) -> dict[str, Distribution]:
        """Axes with a distribution, or a list to choose from; lists of seeds, and families', stay axes."""
        space = {}
        for key, given in self._mapping(("axes",)).items():
            if isinstance(given, list) and (key == per or key in REPLICATES):
                continue
            try:
                text = isinstance(given, str)
                space[key] = parse_distribution(given) if text else choices(self._axis(("axes", key)))
            except ConfigError as error:
                told = str(error)
                raise error if key in told else self._error(("axes", key), f"axis {key}: {told}") from error
        return space

    def _axes(self, without: Container[str] = ()) -> Iterator[Axes]:
        for key in self._mapping(("axes",)):
            if key not in without:
                yield Axes({key: self._axis(("axes", key))})

    def _zip(self) -> Iterator[Axes]:
        given = self._at(("zip",))
        if given is None:
            return
        groups: list[Keys] = [("zip", index) for index in range(len(given))] if isinstance(given, list) else [("zip",)]
        for keys in groups:
            group = self._mapping(keys)
            if len(group) < 2:
                raise self._error(keys, "zip: a group needs two axes or more that move together")
            values = {key: self._axis((*keys, key)) for key in group}
            lengths = {key: len(axis) for key, axis in values.items()}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
                raise self._error(keys, f"zip: axes that move together need as many values each: {told}")
            yield Axes(values)

    def _axis(self, keys: Keys) -> tuple[Value, ...]:
        """The values of one axis: distinct, unless it moves with others."""
        values, key = self._at(keys), keys[-1]
        if isinstance(values, dict):
            raise self._error(keys, f"axis {key}: must be a list of values; nested keys are written {key}.name")
        if not isinstance(values, list):
            raise self._error(keys, f"axis {key}={values!r} is not valid: must be a list, such as [{shown(values)}]")
        if not values:
            raise self._error(keys, f"axis {key} is empty: give at least one value")
        for index, value in enumerate(values):
            if isinstance(value, dict):
                raise self._error((*keys, index), f"axis {key}: a value cannot be a mapping: {value!r}")
            if keys[0] == "axes" and any(same_value(value, earlier) for earlier in values[:index]):
                raise self._error((*keys, index), f"axis {key} has {shown(value)} twice")
        return tuple(map(_frozen, values))

    def _check_axes(self, sweep: Sweep) -> None:
        keys = [*sweep.keys, *sweep.space]
        for key in keys:
            if keys.count(key) > 1:
                raise self._error(("zip",), f"axis {key} is given twice")
            if key in sweep.overrides:
                raise self._error(("overrides", key), f"{key} is both an override and an axis")
            inside = next((other for other in keys if key.startswith(f"{other}.") and "." in other), None)
            if inside:
                raise self._error(("axes", key), f"axis {key} is part of axis {inside}")
        for axes in sweep.axes:
            steps = [spelling(list(step.values())) for step in axes.steps()]
            twice = next((index for index, step in enumerate(steps) if step in steps[:index]), None)
            if twice is not None:
                raise self._error(("zip",), f"zip: entry {twice + 1} of {', '.join(axes.values)} is there twice")
        for key, value in sweep.baseline.items():
            self._check_value(sweep, ("baseline", key), key, value)

    def _check_value(self, sweep: Sweep, keys: Keys, key: str, value: Value) -> None:
        """`value` must be one that axis `key` takes."""
        if key not in sweep.keys:
            raise self._error(keys, f"{keys[0]}: {key} is not an axis{nearest(key, sweep.keys)}")
        values = sweep.values_of(key)
        if not any(same_value(value, known) for known in values):
            known = ", ".join(map(shown, values))
            raise self._error(keys, f"{keys[0]}: {key}={shown(value)} matches no point; the axis has {known}")

    def _conditions(self, sweep: Sweep, section: str) -> tuple[Condition, ...]:
        given = self._at((section,))
        if given is None:
            return ()
        places: list[Keys] = [(section, i) for i in range(len(given))] if isinstance(given, list) else [(section,)]
        conditions = []
        for keys in places:
            condition = {}
            for key, value in self._mapping(keys).items():
                values = tuple(value) if isinstance(value, list) else (value,)
                for each in values:
                    self._check_value(sweep, (*keys, key), key, each)
                condition[key] = values
            if not condition:
                raise self._error(keys, f"{section}: a condition must be a mapping of axes to values")
            conditions.append(condition)
        return tuple(conditions)

    def _launcher(self) -> LauncherConfig:
        return LocalConfig() if self._at(("launcher",)) is None else self._block("launcher", launcher_from)

    def _throughput(self) -> StatedSpeed | None:
        return None if self._at(("throughput",)) is None else self._block("throughput", stated_speed_from)


def _bench_tree(bench: BenchConfig) -> dict[str, Any]:
    from study.bench.block import bench_tree

    return bench_tree(bench)


def _as_axis(distribution: Distribution) -> Value:
    return list(distribution.arguments) if distribution.kind == "choice" else str(distribution)


def _frozen(value: Value) -> Value:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
