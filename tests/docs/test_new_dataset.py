"""docs/new_dataset.md, followed to the letter in a copy of the tree: one file, its questions, runs, features."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Done, block, commands, copy_tree, run_in

PAGE = ROOT / "docs" / "new_dataset.md"
TINY = {
    "python -m study.run": " train.images=64 train.validate_images=20 data.count=100 sample.count=20",
    "python -m study.sweep": " --plan",
    "python -m study.score.extractors.train": " --steps 2",
}
"""Words added to the commands that begin so."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_tree(tmp_path_factory.mktemp("data") / "tree")
    (folder / "study" / "data" / "waves.py").write_text(block(PAGE, "python", "@register"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(tree: Path) -> dict[str, Done]:
    given = commands(PAGE)
    asked = [line + next((words for start, words in TINY.items() if line.startswith(start)), "") for line in given]
    return dict(zip(given, run_in(tree, asked, tree.parent), strict=True))


def said(done: dict[str, Done], words: str) -> str:
    (found,) = (end.said for line, end in done.items() if words in line)
    return found


def test_every_command_ends_well(done: dict[str, Done]) -> None:
    assert len(done) == 6
    assert [str(end) for end in done.values() if end.status] == []


def test_it_answers_what_every_set_is_asked(done: dict[str, Done]) -> None:
    assert re.findall(r"(\d+) passed", said(done, "pytest")) == ["11"]


def test_the_sheet_is_there(tree: Path, done: dict[str, Done]) -> None:
    assert (tree / "waves16.png").stat().st_size > 1000


def test_runs_and_plans_know_it(tree: Path, done: dict[str, Done]) -> None:
    (config,) = tree.glob("results/runs/*/config.yaml")
    assert "waves16" in config.read_text(encoding="utf-8")
    assert "6 runs: 6 new" in said(done, "study.sweep")


def test_it_gets_a_feature_space_of_its_own(tree: Path, done: dict[str, Done]) -> None:
    manifest = json.loads((tree / "study/score/extractors/manifest.json").read_text(encoding="utf-8"))
    assert manifest["waves16"]["trained_on"]["name"] == "waves16"
    assert all(f"{name}_waves16@1k" in said(done, "study.score waves16") for name in ("fd", "kd", "agreement"))
