"""Every number of docs/findings.md is printed by a cell of a committed notebook, and its figures are theirs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from analysis.notebooks import notebooks, read

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
QUOTED = re.compile(r"`[^`]*`|\]\([^)]*\)|^#.*$|^    .*$", re.MULTILINE)  # code, targets of links, headings
SMALL = 20  # counts up to here are of seeds, steps of a list and the like


def numbers(text: str) -> set[str]:
    return {found.replace(",", "").rstrip(".") for found in NUMBER.findall(text)}


def is_small_count(number: str) -> bool:
    return number.isdigit() and int(number) <= SMALL


def printed() -> set[str]:
    """What the notebooks say, in tables and sentences."""
    outputs = [out for path in notebooks() for cell in read(path).cells for out in cell.get("outputs", [])]
    return numbers("\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs))


def pictures() -> set[bytes]:
    outputs = [out for path in notebooks() for cell in read(path).cells for out in cell.get("outputs", [])]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return {base64.b64decode(picture) for picture in found}


def test_every_number_is_printed_by_a_notebook() -> None:
    told = {
        number for number in numbers(QUOTED.sub(" ", PAGE.read_text(encoding="utf-8"))) if not is_small_count(number)
    }
    assert len(told) > 50
    assert sorted(told - printed()) == []


def test_its_figures_are_those_of_the_notebooks() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", PAGE.read_text(encoding="utf-8"))
    assert shown
    known = pictures()
    strangers = [name for name in shown if (PAGE.parent / name).read_bytes() not in known]
    assert strangers == []


@pytest.mark.parametrize(("text", "wanted"), [("0.0353 ±0.016, 1,100 of 2e-3", {"0.0353", "0.016", "1100", "2e-3"})])
def test_numbers_are_found_as_they_are_written(text: str, wanted: set[str]) -> None:
    assert numbers(text) == wanted
