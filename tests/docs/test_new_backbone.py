"""docs/new_backbone.md, followed to the letter in a copy of the tree: one file, one sweep, and what comes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Done, block, blocks, commands, copy_tree, run_in

PAGE = ROOT / "docs" / "new_backbone.md"
TEXT = PAGE.read_text(encoding="utf-8")
TINY = "launcher=inline train.images=128 train.validate_images=20 sample.count=24 sample.sampler.steps=2"
"""Words added to the sweep, and to nothing else."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_tree(tmp_path_factory.mktemp("backbone") / "tree")
    (folder / "models" / "mixer.py").write_text(block(PAGE, "python", "class Mixer("), encoding="utf-8")
    (folder / "sweeps" / "mixer.yaml").write_text(block(PAGE, "yaml", "mixer-tiny"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(tree: Path) -> dict[str, Done]:
    given = commands(PAGE)
    asked = [f"{line} {TINY}" if line.endswith("sweeps/mixer.yaml") else line for line in given]
    return dict(zip(given, run_in(tree, asked, tree.parent), strict=True))


def test_it_is_one_file_of_under_fifty_lines() -> None:
    (code,) = blocks(PAGE, "python")
    lines = [line for line in code.splitlines() if line.strip()]
    own = [line for line in lines if not line.startswith(("from ", "import ", '"""'))]
    assert len(own) < 50


def test_every_command_ends_well(done: dict[str, Done]) -> None:
    assert len(done) == 6
    assert [str(end) for end in done.values() if end.status] == []


def test_it_conforms_and_three_methods_count_alike(done: dict[str, Done]) -> None:
    conforms, agrees = (end.said for line, end in done.items() if "pytest" in line)
    asked = int(re.findall(r"(\d+) passed", conforms)[0])
    assert asked == 28
    assert "skipped" not in conforms
    assert re.findall(r"(\d+) passed", agrees) == ["1"]


def test_its_cost_is_the_one_told(done: dict[str, Done]) -> None:
    (printed,) = (end.said for line, end in done.items() if "study.cost" in line)
    mixer, diffussm = json.loads(printed)["rows"]
    told = f"{mixer['params_m']:.3f} M parameters and {mixer['gmacs']:.5f} GMACs"
    assert f"{told}, against {diffussm['params_m']:.3f} M and {diffussm['gmacs']:.4f}" in TEXT
    assert diffussm["gmacs"] / mixer["gmacs"] == pytest.approx(8, rel=0.1)


def points_of(plan: str) -> list[list[str]]:
    """Of each run the family, seed, sizes, parameters, GMACs and work: ids are left out, as versions change them."""
    rows = re.findall(r"^[0-9a-f]{16}  (\S+) +(\d) +(depth=\d+ width=\d+) +new +(\S+) +(\S+) +(\S+)", plan, re.M)
    return [list(row) for row in rows]


def test_the_plan_is_the_one_printed(done: dict[str, Done]) -> None:
    plan = next(end.said for line, end in done.items() if line.endswith("--plan"))
    assert points_of(plan) == points_of(TEXT)
    assert len(points_of(plan)) == 4
    own, baseline = (float(row[4]) for row in (points_of(plan)[2], points_of(plan)[0]))
    assert own == pytest.approx(baseline, rel=0.02)


def test_it_has_its_lines_in_answer_and_report(tree: Path, done: dict[str, Done]) -> None:
    answer = next(end.said for line, end in done.items() if line.endswith("sweeps/mixer.yaml"))
    assert answer.count("backbone=mixer-tiny (depth=8 width=200)") >= 6
    metrics = re.findall(r"^(?!metric )(\w+)", block(PAGE, "", "difference to baseline"), re.M)
    assert len(metrics) == 5
    assert all(re.search(rf"^{metric}\b", answer, re.M) for metric in metrics)
    page = (tree / "results" / "mixer" / "report" / "report.html").read_text(encoding="utf-8")
    assert "mixer-tiny" in page
    table = (tree / "results/mixer/report/tables/mixer-comparison.csv").read_text(encoding="utf-8")
    assert "mixer-tiny" in table
