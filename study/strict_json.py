"""JSON as our own files have it: finite numbers, and nothing nested beyond reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from study.strict import ConfigError


def parse_json(text: str) -> Any:
    """The value, or a ValueError; Python's own reader takes NaN, and ends in a RecursionError on thousands of `[`."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(file: Path, absent: str, remedy: str) -> Any:
    """The value in a file; a ConfigError of one line that says what is not there without it, or what mends it."""
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{absent}: {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is damaged: {error}; {remedy}") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
