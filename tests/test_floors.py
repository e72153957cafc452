"""Imports only go down: models know nothing of the harness, the harness nothing of the analysis, but for one door.

And every file is one that can be read in one sitting.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {"models": {"study", "analysis"}, "study": {"analysis"}, "analysis": set()}
DOOR = Path("study/report.py")
LONGEST = 400  # lines


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("floor", ABOVE)
def test_nothing_is_imported_from_a_floor_above(floor: str) -> None:
    upwards = [
        (path.relative_to(ROOT), module)
        for path in sorted((ROOT / floor).rglob("*.py"))
        for module in imported(path)
        if module.split(".")[0] in {*ABOVE[floor], "tests", "benchmarks"}
    ]
    assert upwards == ([(DOOR, "analysis.report")] if floor == "study" else [])


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    rooms = [*ABOVE, "tests", "benchmarks"]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
    }
    assert {path: length for path, length in lengths.items() if length > LONGEST} == {}
