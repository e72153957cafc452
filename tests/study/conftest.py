"""What tests of whole runs share: one that nothing disturbed, and the words for another like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.run_directory import RunDirectory
from tests.study.short_run import SMALL, finished


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished([*SMALL, f"results={tmp_path_factory.mktemp('undisturbed')}"])


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return [*SMALL, f"results={tmp_path / 'results'}"]
