"""docs/architecture.md as built: what it names is there, and what is there it names."""

from __future__ import annotations

import re
from itertools import takewhile

import pytest

from tests.docs.pages import ROOT, indented

PAGE = ROOT / "docs" / "architecture.md"
TREE = indented(PAGE)[0]
FLOORS = ("models", "study", "analysis")


def named(floor: str) -> set[str]:
    """Modules and rooms of a floor: behind a label and a wide gap (of models: before one), up to a colon."""
    lines = TREE.split(f"{floor}/ ", 1)[1].splitlines()[1:]
    rows = [line[2:] for line in takewhile(lambda line: line.startswith("  "), lines) if not line.startswith("   ")]
    found: set[str] = set()
    for row in rows:
        columns = re.split(r" {2,}", row)
        found |= set(columns[0 if floor == "models" else 1].split(":")[0].split(", "))
    return found


def built(floor: str) -> set[str]:
    top = [path for path in (ROOT / floor).iterdir() if path.name not in ("__init__.py", "__pycache__")]
    rooms = {f"{path.name}/" for path in top if (path / "__init__.py").exists()}
    return rooms | {path.stem for path in top if path.suffix == ".py"}


@pytest.mark.parametrize("floor", FLOORS)
def test_every_module_is_in_its_room(floor: str) -> None:
    """Under its own name or the beginning of it: `findings` speaks for `findings_page`."""
    names, there = named(floor), built(floor)
    assert names - there == set()
    assert {each for each in there - names if not each.startswith(tuple(f"{name}_" for name in names))} == set()


def test_paths_it_names_exist() -> None:
    paths = re.findall(r"`((?:models|study|analysis|tests|sweeps|docs)/[\w/.]+)`", PAGE.read_text(encoding="utf-8"))
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []
