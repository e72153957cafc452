"""How tests of this folder begin a search, and what it says of its trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Search = Callable[..., int]
"""The command on a sweep file's text, with words; `work` is what is done with each run."""


def told(tmp_path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((tmp_path / "r" / "lrs" / "trials.json").read_text(encoding="utf-8"))
    return found
