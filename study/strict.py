"""Plain trees to frozen dataclasses and back: every key known, every value of its declared type.

Composed configs, frozen `config.yaml` files and expanded sweep points all become dataclasses
here, so the three cannot disagree about what is valid or about what two spellings mean.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """One line that names the key, its value and what would be valid."""


def from_tree(cls: type[T], tree: Any, where: str = "") -> T:
    """Build the dataclass `cls`; `where` is the dotted key of `tree`, for messages."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where or 'the config'}={tree!r} is not valid: must be a mapping of {cls.__name__}'s keys")
    types_of = _field_types(cast(Any, cls))
    for key in tree:
        if key not in types_of:
            raise unknown_key(dotted(where, key), [dotted(where, name) for name in types_of])
    missing = [dotted(where, name) for name in types_of if name not in tree]
    if missing:
        raise ConfigError(f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    values = {name: convert(types_of[name], tree[name], dotted(where, name)) for name in types_of}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(dotted(where, str(error)) if _names_a_field(str(error), types_of) else str(error)) from error


def to_tree(value: Any) -> Any:
    """Dataclasses to dictionaries, tuples to lists, enums to their values."""
    if is_dataclass(value):
        return {field.name: to_tree(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_tree(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_tree(item) for key, item in value.items()}
    return value


def convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `kind`; only spellings of the same meaning are accepted (1 for 1.0, and back)."""
    if kind is Any:
        return value
    origin = get_origin(kind)
    if origin is Union or origin is types.UnionType:
        return _convert_union(get_args(kind), value, where)
    if origin is Literal:
        return _convert_choice(get_args(kind), value, where)
    if origin is tuple:
        return _convert_tuple(get_args(kind), value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return from_tree(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_convert_choice(tuple(member.value for member in kind), value, where))
    return _convert_scalar(kind, value, where)


def unknown_key(key: str, known: list[str], elsewhere: list[str] | None = None) -> ConfigError:
    """`elsewhere` are keys worth suggesting, but too many to list."""
    return ConfigError(f"unknown key {key}{nearest(key, known, elsewhere)}")


def nearest(name: str, known: list[str], elsewhere: list[str] | None = None) -> str:
    """`: did you mean ...?`, or all that is known when nothing is near."""
    candidates = elsewhere or known
    leaf = name.rsplit(".", 1)[-1]
    near = [key for key in candidates if key.rsplit(".", 1)[-1] == leaf][:1]
    near = near or difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}={value!r} is not valid: must be {least} or more")


def gathered(tree: Mapping[str, Any], sections: Collection[str], plain: str = "") -> dict[str, Any]:
    """`slurm.account=a`, from a command line, as an entry of the mapping `slurm`; text there is its entry `plain`."""
    rest = dict(tree)
    for key in [str(key) for key in rest]:
        section, _, leaf = key.partition(".")
        here = rest.get(section, {})
        here = {plain: here} if plain and isinstance(here, str) else here
        if leaf and section in sections and isinstance(here, Mapping):
            rest[section] = {**here, leaf: rest.pop(key)}
    return rest


def dotted(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def _names_a_field(message: str, known: Mapping[str, Any]) -> bool:
    return message.split("=", 1)[0].strip() in known


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is float and is_number:
        return float(value) + 0.0  # -0.0 is 0.0
    if kind is int and is_number and value == int(value):
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # YAML reads 250 as a number
    if kind is types.NoneType and value is None:
        return None
    name = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        types.NoneType: "null",
    }.get(kind)
    raise ConfigError(f"{where}={value!r} is not valid: must be {name or kind}")


def _convert_choice(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        if choice == value and isinstance(choice, bool) == isinstance(value, bool):
            return choice
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ConfigError(f"{where}={value!r} is not valid: must be one of {', '.join(map(str, choices))}{hint}")


def _convert_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where}={value!r} is not valid: must be a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{where}={list(value)!r} is not valid: must have {len(kinds)} entries")
    return tuple(convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first kind that takes the value; when none does, the first one's complaint."""
    if value is None and types.NoneType in kinds:
        return None
    complaints = []
    for kind in kinds:
        if kind is types.NoneType:
            continue
        try:
            return convert(kind, value, where)
        except ConfigError as error:
            complaints.append(error)
    raise complaints[0]
