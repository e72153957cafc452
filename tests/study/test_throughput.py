"""Recorded speed: of which runs it is taken."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from study.results import read_rows, write_rows
from study.run_directory import RunDirectory
from study.throughput import TRAINING, recorded_speed


@pytest.mark.parametrize(("ranks", "counts"), [("1", True), ("2", False), ("2, 1", False)])
def test_the_speed_of_several_ranks_is_nobodys(
    undisturbed: RunDirectory, tmp_path: Path, ranks: str, counts: bool
) -> None:
    copy = RunDirectory(tmp_path, undisturbed.identity)
    copy.path.mkdir(parents=True)
    shutil.copy(undisturbed.config, copy.config)
    rows = [replace(row, provenance={**row.provenance, "ranks": ranks}) for row in read_rows(undisturbed.rows)]
    write_rows(copy.rows, rows)
    values = {row.metric: row.value for row in rows}
    expected = [TRAINING * values["gmacs"] * values["images_per_second"]] if counts else []
    assert [record.gmacs_per_second for record in recorded_speed(tmp_path).records] == expected
