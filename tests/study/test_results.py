"""Rows: written, read back, replaced, checked."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from study.results import Row, append_rows, read_rows, write_rows

ROW = Row(run="a", metric="m", value=1.0, units="s", n=2, interval=(0.5, 1.5), protocol="p", provenance={"k": "v"})


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_rows_round_trip_and_replace(rows_file: Path) -> None:
    write_rows(rows_file, [ROW])
    append_rows(rows_file, [replace(ROW, value=3.0), replace(ROW, protocol="q")])
    assert read_rows(rows_file) == [replace(ROW, value=3.0), replace(ROW, protocol="q")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": float("nan")}, "NaN is not a JSON number"),
        ({"value": "1"}, "value='1' is not valid"),
        ({"n": 0}, "n=0 is not valid"),
        ({"n": True}, "n=True is not valid"),
        ({"interval": [2.0, 1.0]}, "must be (low, high)"),
        ({"interval": True}, "interval=True is not valid"),
        ({"protocol": ""}, "must be not empty"),
        ({"provenance": {"a": 1}}, "must be a mapping of strings"),
        ({"extra": 1}, "unknown ['extra']"),
    ],
)
def test_rows_are_checked(rows_file: Path, change: dict[str, object], reason: str) -> None:
    write_rows(rows_file, [ROW])
    line = {**json.loads(rows_file.read_text()), **change}
    rows_file.write_text(rows_file.read_text() + json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=re.escape(reason)) as refusal:
        read_rows(rows_file)
    assert f"{rows_file}:2: " in str(refusal.value)
