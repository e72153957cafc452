"""Find the sizes of a backbone that meet a budget: "M = 1, 2, 4 at equal compute" in one line.

match: {like: dit-xl/2, free: [depth, width], tolerance: 1%}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from models.denoiser import DenoiserConfig, backbones, named_config, require, require_choice
from study.cost.summary import BACKWARD, FLOPS_PER_MAC, parameters, with_fields
from study.results import read_rows

SPANS = (2, 4, 8, 16)  # how far from the base a field may go: the narrowest span with a solution decides
FEW_VALUES = 64  # try each; more are bisected, cost growing with a size
UNITS = ("gmacs", "like", "params", "train_pflops", "latency_ms")
FIXED = (
    "size",
    "channels",
    "classes",
    "latent_factor",
    "learn_sigma",
    "class_dropout",
    "label_std",
)  # the data's, not the network's


@dataclass(frozen=True)
class Budget:
    """A target in one unit: `gmacs` per image, `params`, `train_pflops` for a run of so many images, `latency_ms`.

    A latency is what a benchmark's rate makes of the MACs: the sizes found should be benchmarked in turn.
    """

    unit: str
    target: float
    images: float = 0.0  # of the run, for train_pflops
    gmacs_per_ms: float = 0.0  # measured, for latency_ms

    def __post_init__(self) -> None:
        require_choice("match", self.unit, ("gmacs", "params", "train_pflops", "latency_ms"))
        require(math.isfinite(self.target) and self.target > 0, self.unit, self.target, "a positive number")
        if self.unit == "train_pflops":
            require(self.images > 0, "images", self.images, "the positive number of training images of the run")
        if self.unit == "latency_ms":
            require(self.gmacs_per_ms > 0, "gmacs_per_ms", self.gmacs_per_ms, "the positive rate of a benchmark")

    def spent(self, config: DenoiserConfig) -> float:
        """What a config costs in this budget's unit."""
        if self.unit == "params":
            return count(config)
        gmacs = config.macs().total / 1e9
        if self.unit == "latency_ms":
            return gmacs / self.gmacs_per_ms
        return gmacs if self.unit == "gmacs" else FLOPS_PER_MAC * (1 + BACKWARD) * gmacs * self.images / 1e6


def count(config: DenoiserConfig) -> int:
    """All parameters. Blocks repeat, so two shallow networks tell what a deep one holds.

    The shallow pair has the depth's own parity, long skips coming one to every two blocks.
    """
    depth = getattr(config, "depth", 0)
    shallow = 4 + depth % 2
    if depth <= shallow + 2 or not _repeats(type(config)):
        return _built(config)
    first, second = (_built(with_fields(config, {"depth": d})) for d in (shallow, shallow + 2))
    return first + (depth - shallow) // 2 * (second - first)


@cache
def _repeats(kind: type[DenoiserConfig]) -> bool:
    """Whether a backbone's parameters grow evenly with its depth: asked of its smallest named size."""
    smallest = min(backbones()[_name(kind)].sizes.values(), key=lambda config: config.macs().total)
    counts = [_built(with_fields(smallest, {"depth": depth})) for depth in (4, 6, 8, 5, 7, 9)]
    return all(b - a == c - b for a, b, c in (counts[:3], counts[3:]))


def _name(kind: type[DenoiserConfig]) -> str:
    return next(name for name, backbone in backbones().items() if backbone.config is kind)


@cache
def _built(config: DenoiserConfig) -> int:
    return parameters(config).total


@dataclass(frozen=True)
class Solution:
    """A config that builds, what it costs, and how far that is from the target."""

    config: DenoiserConfig
    free: tuple[str, ...]
    spent: float
    error: float  # signed, relative to the target
    departure: float  # from the base shape: the sum of |log(value / base)| over free fields

    @property
    def fields(self) -> dict[str, int]:
        return {name: getattr(self.config, name) for name in self.free}

    def __str__(self) -> str:
        return f"{' '.join(f'{k}={v}' for k, v in self.fields.items())} at {self.spent:.6g} ({self.error:+.3%})"


@dataclass(frozen=True)
class Match:
    """The nearest solution, and the one within tolerance that departs least from the base shape."""

    budget: Budget
    best: Solution
    closest_shape: Solution


@dataclass(frozen=True)
class Request:
    """A `match:` block, read."""

    budget: Budget
    free: tuple[str, ...]
    tolerance: float
    prefer: str = "cost"  # cost: nearest the budget | shape: nearest the base shape, within tolerance

    def solve(self, config: DenoiserConfig) -> Solution:
        found = match(config, self.budget, self.free, self.tolerance)
        return found.best if self.prefer == "cost" else found.closest_shape


class UnreachableError(ValueError):
    """No size meets the budget; the message says by how much the nearest miss."""


def match(
    config: DenoiserConfig, budget: Budget, free: Sequence[str] = ("depth", "width"), tolerance: float = 0.01
) -> Match:
    """The sizes of `config`'s backbone, varied in the `free` fields, whose cost is nearest the budget.

    Nearest in relative error; ties go to the shape nearest the base. A combination that the config
    refuses is no candidate. Only the solution itself is sure to exist within `tolerance`.
    """
    _check_free(config, free)
    require(0 < tolerance < 1, "tolerance", tolerance, "between 0 and 1, such as 0.01 or 1%")
    found: list[Solution] = []
    for span in SPANS:
        found = list(_Search(config, budget, tuple(free), span).solutions())
        if within := [s for s in found if abs(s.error) <= tolerance]:
            best = min(within, key=lambda s: (abs(s.error), s.departure))
            return Match(budget, best, min(within, key=lambda s: (s.departure, abs(s.error))))
    raise UnreachableError(_miss(config, budget, free, tolerance, found))


def _check_free(config: DenoiserConfig, free: Sequence[str]) -> None:
    sizes = [f.name for f in fields(config) if f.name not in FIXED and type(getattr(config, f.name)) is int]
    require(bool(free), "free", list(free), f"one or more of {', '.join(sizes)}")
    for name in free:
        require_choice("free", name, tuple(sizes))
    require(len(set(free)) == len(free), "free", list(free), "distinct fields")


def _miss(config: DenoiserConfig, budget: Budget, free: Sequence[str], tolerance: float, found: list[Solution]) -> str:
    target = f"{budget.unit}={budget.target:.6g} cannot be met within {tolerance:.2%} by varying {', '.join(free)}"
    if not found:
        return f"{target}: no other combination is valid"
    below = max((s for s in found if s.error <= 0), key=lambda s: (s.error, -s.departure), default=None)
    above = min((s for s in found if s.error > 0), key=lambda s: (s.error, s.departure), default=None)
    return f"{target}: nearest " + ", ".join(str(s) for s in (below, above) if s is not None)


class _Search:
    """All combinations of the free fields within a factor `span` of the base, the widest field bisected."""

    def __init__(self, base: DenoiserConfig, budget: Budget, free: tuple[str, ...], span: int) -> None:
        self.base, self.budget, self.free = base, budget, free
        self.ranges = {name: _range(getattr(base, name), span) for name in free}
        *self.outer, self.inner = sorted(free, key=lambda name: len(self.ranges[name]))

    def solutions(self) -> Iterator[Solution]:
        """Every candidate that can be nearest: those that bracket the target in each line of the grid."""
        for values in product(*(self.ranges[name] for name in self.outer)):
            yield from self._along(dict(zip(self.outer, values, strict=True)))

    def _along(self, fixed: Mapping[str, int]) -> Iterator[Solution]:
        values = self.ranges[self.inner]
        if len(values) <= FEW_VALUES:
            yield from (s for v in values if (s := self._try(fixed, v)) is not None)
        else:
            yield from self._bracket(fixed, values.start, values.stop - 1)

    def _bracket(self, fixed: Mapping[str, int], low: int, high: int) -> Iterator[Solution]:
        """The valid values on either side of the target; cost grows along the line."""
        ends = self._valid(fixed, range(low, high + 1)), self._valid(fixed, range(high, low - 1, -1))
        below, above = ends
        if below is None or above is None:
            return
        if below[1].error >= 0 or above[1].error <= 0:
            yield below[1] if below[1].error >= 0 else above[1]
            return
        while True:
            middle = (below[0] + above[0]) // 2
            upward, downward = range(max(middle, below[0] + 1), above[0]), range(middle - 1, below[0], -1)
            found = self._valid(fixed, upward) or self._valid(fixed, downward)
            if found is None:
                break
            below, above = (found, above) if found[1].error <= 0 else (below, found)
        yield from (below[1], above[1])

    def _valid(self, fixed: Mapping[str, int], values: range) -> tuple[int, Solution] | None:
        return next(((v, s) for v in values if (s := self._try(fixed, v)) is not None), None)

    def _try(self, fixed: Mapping[str, int], value: int) -> Solution | None:
        chosen = {**fixed, self.inner: value}
        try:
            config = with_fields(self.base, chosen)
        except ValueError:
            return None
        spent = self.budget.spent(config)
        departure = sum(abs(math.log(v / getattr(self.base, k))) for k, v in chosen.items())
        return Solution(config, self.free, spent, spent / self.budget.target - 1, departure)


def _range(base: int, span: int) -> range:
    return range(max(1, math.ceil(base / span)), base * span + 1)


def parse(block: Mapping[str, Any], base: DenoiserConfig) -> Request:
    """Read `{gmacs: 118.6 | like: NAME | params: N | train_pflops: X, images: N | latency_ms: X, rows: FILE, ...}`.

    And of each, optionally: `free: [...], tolerance: 1%, prefer: cost | shape`.
    """
    for key in block:
        require_choice("match", str(key), (*UNITS, "images", "rows", "free", "tolerance", "prefer"))
    given = [unit for unit in UNITS if unit in block]
    require(len(given) == 1, "match", given, f"exactly one of {', '.join(UNITS)}")
    free = block.get("free", [name for name in ("depth", "width") if hasattr(base, name)])
    require(isinstance(free, list | tuple), "free", free, "a list of fields")
    prefer = str(block.get("prefer", "cost"))
    require_choice("prefer", prefer, ("cost", "shape"))
    budget = _budget(given[0], block, base)
    return Request(budget, tuple(map(str, free)), percentage(block.get("tolerance", 0.01)), prefer)


def _budget(unit: str, block: Mapping[str, Any], base: DenoiserConfig) -> Budget:
    if unit == "like":
        other = named_config(str(block["like"]))
        # The other backbone sees the same images, so at this base's resolution.
        height, width = (side * base.latent_factor // other.latent_factor for side in base.size)
        return Budget("gmacs", replace(other, size=(height, width)).macs().total / 1e9)
    if unit == "latency_ms":
        require("rows" in block, "rows", None, "a file of benchmark rows: latency_ms and gmacs of one backbone")
        return Budget(unit, number(unit, block[unit]), gmacs_per_ms=measured_rate(Path(str(block["rows"]))))
    return Budget(unit, number(unit, block[unit]), number("images", block.get("images", 0)))


def measured_rate(path: Path) -> float:
    """GMACs per millisecond of the one benchmarked backbone in a file of rows."""
    require(path.is_file(), "rows", str(path), "a file of benchmark rows that exists")
    latency, gmacs = ({r.run: r.value for r in read_rows(path) if r.metric == m} for m in ("latency_ms", "gmacs"))
    both = [run for run in latency if run in gmacs]
    require(len(both) == 1, "rows", str(path), f"latency_ms and gmacs rows of one backbone, not of {len(both)}")
    return gmacs[both[0]] / latency[both[0]]


def number(field: str, value: Any) -> float:
    """A number, written plainly or as YAML leaves `1e9`: a string."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{field}={value!r} is not valid: must be a number") from None


def percentage(value: Any) -> float:
    """`1%` or 0.01."""
    if isinstance(value, str) and value.endswith("%"):
        return number("tolerance", value[:-1]) / 100
    return number("tolerance", value)
