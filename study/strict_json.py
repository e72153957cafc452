"""JSON as our own files have it: finite numbers, and nothing nested beyond reason."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(text: str) -> Any:
    """The value, or a ValueError; Python's own reader takes NaN, and ends in a RecursionError on thousands of `[`."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
