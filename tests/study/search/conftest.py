"""A search in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.launch.work import Work
from study.sweep import main
from tests.study.search.fake_objectives import SWEEP, bowl_run
from tests.study.search.searching import Search
from tests.study.sweeping import sweep_file


@pytest.fixture
def search(tmp_path: Path) -> Search:
    def run(text: str = SWEEP, *words: str, work: Work = bowl_run) -> int:
        return main([str(sweep_file(tmp_path, text)), f"results={tmp_path / 'r'}", *words], work)

    return run
