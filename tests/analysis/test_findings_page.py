"""Every number of docs/findings.md is printed by a cell of its two notebooks, and its figures are theirs."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

from analysis.notebooks import notebooks, read

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
INTERVAL = re.compile(rf"{NUMBER.pattern}\s*(?:±\s*{NUMBER.pattern}|\[[^]]*\d\])")  # with its number: one statement
NOTEBOOKS = ("06", "12")
QUOTED = re.compile(r"`[^`]*`|\]\([^)]*\)|^#.*$|^    .*$", re.MULTILINE)  # code, targets of links, headings
SMALL = 20  # counts up to here are of seeds, steps of a list and the like


def numbers(text: str) -> set[str]:
    return {found.replace(",", "").rstrip(".") for found in NUMBER.findall(text)}


def intervals(text: str) -> set[str]:
    return {re.sub(r"[\s,]+", " ", found).replace("± ", "±") for found in INTERVAL.findall(text)}


def is_small_count(number: str) -> bool:
    return number.isdigit() and int(number) <= SMALL


def outputs() -> list[NotebookNode]:
    return [out for path in notebooks(NOTEBOOKS) for cell in read(path).cells for out in cell.get("outputs", [])]


def printed() -> str:
    """What the notebooks say, in tables and sentences."""
    return "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs())


def pictures() -> set[bytes]:
    found = [output["data"]["image/png"] for output in outputs() if "image/png" in output.get("data", {})]
    return {base64.b64decode(picture) for picture in found}


def test_every_number_is_printed_by_a_notebook() -> None:
    page = QUOTED.sub(" ", PAGE.read_text(encoding="utf-8"))
    told = {number for number in numbers(page) if not is_small_count(number)}
    assert len(told) > 50
    assert sorted(told - numbers(printed())) == []
    assert len(intervals(page)) > 30
    assert sorted(intervals(page) - intervals(printed())) == []


def test_its_figures_are_those_of_the_notebooks() -> None:
    shown = re.findall(r"!\[[^\]]*\]\(([^)]+\.png)\)", PAGE.read_text(encoding="utf-8"))
    assert shown
    known = pictures()
    strangers = [name for name in shown if (PAGE.parent / name).read_bytes() not in known]
    assert strangers == []


@pytest.mark.parametrize(("text", "wanted"), [("0.0353 ±0.016, 1,100 of 2e-3", {"0.0353", "0.016", "1100", "2e-3"})])
def test_numbers_are_found_as_they_are_written(text: str, wanted: set[str]) -> None:
    assert numbers(text) == wanted


def test_a_number_and_its_interval_are_one() -> None:
    text = "+0.0353 ±0.016, then 41.2\n[34.3, 46.6] and 1,100 ± 20 [1]"
    assert intervals(text) == {"0.0353 ±0.016", "41.2 [34.3 46.6]", "1 100 ±20"}
