"""Every command line of the README, carried out in a copy of the tree; and what it claims beside them.

Commands that would take minutes get words that make them tiny, and no other change: TINY says which. What installs
is held to what `make` would do, for which a network would be needed.
"""

from __future__ import annotations

import csv
import doctest
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from models import backbones, named_config
from study.compose import resolve
from study.config import run_id
from tests.docs.pages import ROOT, Done, commands, copy_tree, run_in, words_of

README = ROOT / "README.md"
SMALL_RUN = "train.images=128 train.validate_images=20 sample.count=24 sample.sampler.steps=2 machine.threads=1"
SMALL_DATA = "data.count=200 data.heldout=100 data.reference=100"
TINY = {
    "python -m study.sweep sweeps/ablate_M.yaml": f"{SMALL_RUN} launcher=inline",
    "python -m study.run backbone=diffussm-tiny": f"{SMALL_RUN} {SMALL_DATA}",
    "python -m study.bench": "--min-seconds 0.01 --min-samples 2 --repeats 1 --blocks 2 --rejected 1000 --no-memory",
}
"""Words added to the commands that begin so; `--plan` takes none."""


def tiny(command: str) -> str:
    plain = " ".join(words_of(command))
    return " ".join([plain, *(words for begins, words in TINY.items() if plain.startswith(begins))])


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return [" ".join(words_of(line)) for line in commands(README)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """How each `python -m study...` of the page ended, in its order, in a copy of the tree without results."""
    tree = copy_tree(tmp_path_factory.mktemp("readme") / "tree")
    given = [line for line in commands(README) if line.startswith("python -m ")]
    asked = [tiny(line) for line in given]
    (run,) = (line for line in asked if "study.run" in line)
    identity = run_id(resolve(run.split()[3:]))
    ends = run_in(tree, [line.replace("RUN_ID", identity) for line in asked], tree.parent)
    return {" ".join(words_of(line)): end for line, end in zip(given, ends, strict=True)}


def test_all_end_well(done: dict[str, Done]) -> None:
    assert [str(end) for end in done.values() if end.status] == []
    assert len(done) == len([line for line in commands(README) if line.startswith("python -m ")]) >= 9


def test_they_say_what_the_readme_says(done: dict[str, Done]) -> None:
    told = {line.split(" -m ")[1]: end.said for line, end in done.items()}
    assert "6 runs: 6 new" in told["study.sweep sweeps/ablate_M.yaml --plan"]
    answer = told["study.sweep sweeps/ablate_M.yaml"]
    assert "difference to baseline" in answer
    assert "cost of" in answer
    assert "6 done" in re.sub(r"\s+", " ", told["study.status ablate_M"])
    assert told["study.report results/ablate_M"].strip().endswith("results/ablate_M/report/report.html")
    assert "GPU-hours" in told["study.sweep sweeps/paper_imagenet256.yaml --plan"]
    score = next(said for line, said in told.items() if line.startswith("study.score"))
    assert all(f"{name}_glyphs16" in score for name in ("fd", "kd", "agreement"))


def dry(target: str, tree: Path) -> str:
    """What make would do there, where nothing is installed."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_make_study_is_what_is_written_out_by_hand(tree: Path, lines: list[str]) -> None:
    by_hand = [line for line in lines if line.startswith(("python3 ", ".venv/"))]
    done = [line.replace(" --quiet", "") for line in dry("study", tree).splitlines() if not line.startswith("touch")]
    assert done == by_hand


@pytest.mark.parametrize("target", ["test", "notebooks"])
def test_make_runs_modules_that_exist(target: str, tree: Path, lines: list[str]) -> None:
    assert f"make {target}" in lines
    modules = set(re.findall(r"-m ([\w.]+)", dry(target, tree))) - {"venv", "pip", "pytest"}
    assert all((ROOT / f"{module.replace('.', '/')}.py").exists() for module in modules)


def test_every_line_is_carried_out_by_a_test_here(lines: list[str]) -> None:
    made = {"make study", "make test", "make notebooks"}
    installs = {"pip install -e .[notebooks]", "jupyter lab analysis/"}
    rest = [line for line in lines if not line.startswith(("python -m ", "python3 -m venv", ".venv/bin/python -m "))]
    assert sorted(rest) == sorted(made | installs)


def test_the_extra_installs_jupyter_and_jupyter_opens_the_folder(tree: Path) -> None:
    """With a browser: tests/analysis/test_jupyter_server.py. Here only that `jupyter lab` takes these words."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(each.startswith("jupyterlab") for each in extras["notebooks"])
    pytest.importorskip("jupyterlab")
    command = [sys.executable, "-m", "jupyterlab", "analysis/", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert list((ROOT / "analysis").glob("01_*.ipynb"))


def test_python_at_the_prompt() -> None:
    failed, tried = doctest.testfile(str(README), module_relative=False)
    assert tried >= 3
    assert not failed


def test_the_headline_is_the_published_answer() -> None:
    """43 % fewer MACs, and the two differences with their intervals."""
    with (ROOT / "results/published/ablate_M/answer.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    text = README.read_text(encoding="utf-8")
    found = {row["metric"]: row for row in rows if row["backbone.M"] == "2"}
    for metric, digits in (("val_loss", 4), ("val_loss_bin0", 4)):
        difference, reach = (float(found[metric][column]) for column in ("difference", "difference_reach"))
        assert f"({difference:+.{digits}f} ± {reach:.{digits}f})" in text
    assert found["val_loss"]["verdict"] == "within noise" != found["val_loss_bin0"]["verdict"]
    saved = 1 - named_config("diffussm-tiny", M=2).macs().total / named_config("diffussm-tiny", M=1).macs().total
    assert f"takes {saved * 100:.0f} % fewer" in text


def test_the_table_names_every_backbone_and_its_knobs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", README.read_text(encoding="utf-8"), re.M)
    assert {name for name, _, _ in rows} == set(backbones())
    for name, sizes, knobs in rows:
        own = {field.name for field in fields(backbones()[name].config)}
        assert set(re.findall(r"`(\w+)`", knobs)) <= own
        assert all(size in backbones()[name].sizes for size in re.split(r", | … ", sizes))


def test_it_can_be_read_in_three_minutes() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("\n") <= 95
    assert len(text.split()) < 900
