"""What a sweep file may write in place of an axis's values: where a search may look."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from study.strict import ConfigError, nearest

KINDS = ("loguniform", "uniform", "range", "logrange", "choice")
_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True)
class Distribution:
    """`loguniform(1e-4, 5e-3)`, `uniform(0, 1)`, `range(1, 8)`, `range(32, 96, 32)`, `logrange(1, 64)`, or choices.

    Both ends of a range belong to it.
    """

    kind: str
    arguments: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.kind == "choice":
            _check_choices(self.arguments)
        else:
            _check_numbers(self.kind, self.arguments)

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(map(_written, self.arguments))})"

    @property
    def ends(self) -> tuple[Any, Any]:
        """Two values that it contains, as far apart as can be."""
        if self.kind == "choice":
            return self.arguments[0], self.arguments[-1]
        low, high, *step = self.arguments
        return low, high - (high - low) % step[0] if step else high

    def contains(self, value: Any) -> bool:
        if self.kind == "choice":
            return any(value == choice and type(value) is type(choice) for choice in self.arguments)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high, *step = self.arguments
        whole = self.kind in ("uniform", "loguniform") or value == int(value)
        return low <= value <= high and whole and (not step or (value - low) % step[0] == 0)


def parse_distribution(text: str) -> Distribution:
    """What a sweep file says; a ConfigError names what is wrong with it."""
    match = _CALL.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not valid: must be a list, or a distribution such as loguniform(1e-4, 5e-3)")
    name, inside = match.groups()
    if name not in KINDS:
        raise ConfigError(f"{text!r}: {name} is not a distribution{nearest(name, list(KINDS))}")
    arguments = tuple(_value(part.strip()) for part in inside.split(",")) if inside.strip() else ()
    return Distribution(name, arguments)


def choices(values: Sequence[Any]) -> Distribution:
    return Distribution("choice", tuple(values))


def _check_choices(values: tuple[Any, ...]) -> None:
    if not values:
        raise ConfigError("choice() is not valid: must have at least one value")
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, bool | int | float | str):
            raise ConfigError(f"choice {value!r} is not valid: must be a number, a text, true, false or null")
        if any(value == other and type(value) is type(other) for other in values[:index]):
            raise ConfigError(f"choice {value!r} is there twice")


def _check_numbers(kind: str, given: tuple[Any, ...]) -> None:
    told = f"{kind}({', '.join(map(_written, given))})"
    most = 3 if kind == "range" else 2
    if not 2 <= len(given) <= most:
        raise ConfigError(f"{told} is not valid: must have a low and a high end{' and maybe a step' * (most == 3)}")
    for value in given:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (kind.endswith("range") and not isinstance(value, int)):
            needed = "an integer" if kind.endswith("range") else "a number"
            raise ConfigError(f"{told} is not valid: {value!r} must be {needed}")
    if given[0] >= given[1]:
        raise ConfigError(f"{told} is empty: its low end must be below its high end")
    if kind.startswith("log") and given[0] <= 0:
        raise ConfigError(f"{told} is not valid: a logarithm needs ends above 0")
    if len(given) == 3 and given[2] < 1:
        raise ConfigError(f"{told} is not valid: its step must be 1 or more")


def _value(text: str) -> Any:
    """A number, true, false, or text with or without quotes."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
