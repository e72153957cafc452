"""docs/new_metric.md, followed to the letter in a copy of the tree: a function, its names, what it is held to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Done, block, commands, copy_tree, run_in

PAGE = ROOT / "docs" / "new_metric.md"
FUNCTION, CHECK, CHANGE = block(PAGE, "python", "def vendi"), block(PAGE, "python", "assert"), block(PAGE, "diff", "")
RUN = (
    "python -m study.run train.images=64 train.validate_images=20 sample.count=24 sample.sampler.steps=2 "
    "score.metrics=[fd,vendi]"
)


def edited(text: str, change: str) -> str:
    """A file after the hunks of a diff: each line taken out is there once, each line added stands in its place."""
    for hunk in change.split("@@\n")[1:]:
        lines = [line for line in hunk.splitlines() if not line.startswith(("---", "+++"))]
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_tree(tmp_path_factory.mktemp("metric") / "tree")
    metrics = folder / "study" / "score" / "metrics.py"
    text = metrics.read_text(encoding="utf-8")
    assert text.count("\nESTIMATORS") == 1
    metrics.write_text(text.replace("\nESTIMATORS", f"\n{FUNCTION}\n\nESTIMATORS"), encoding="utf-8")
    for part in re.split(r"^--- a/", CHANGE, flags=re.M)[1:]:
        file = folder / part.splitlines()[0]
        file.write_text(edited(file.read_text(encoding="utf-8"), part), encoding="utf-8")
    (folder / "check.py").write_text(CHECK, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(tree: Path) -> list[Done]:
    return list(run_in(tree, [*commands(PAGE), "python -m check", RUN], tree.parent))


def test_everything_ends_well(done: list[Done]) -> None:
    assert [str(end) for end in done if end.status] == []


def test_real_images_are_scored(done: list[Done]) -> None:
    (value,) = re.findall(r"digits8/heldout\W+vendi_digits8@297\W+([\d.]+)", done[0].said)
    assert 2 < float(value) < 297


def test_a_run_has_its_row_and_its_floor(tree: Path, done: list[Done]) -> None:
    (rows,) = tree.glob("results/runs/*/rows.jsonl")
    text = rows.read_text(encoding="utf-8")
    assert '"vendi_digits8@24"' in text
    assert '"vendi_digits8@24.real"' in text


def test_a_hunk_that_does_not_fit_is_noticed() -> None:
    with pytest.raises(AssertionError, match="old"):
        edited("new\n", "@@\n-old\n+new\n")
