"""What stands in code on the pages: Python runs, sweeps are planned, and options are those the commands have.

The three pages with worked examples are followed by tests of their own, as is the README.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from models import Denoiser, build
from study.bench.__main__ import COMMANDS as BENCH
from study.bench.__main__ import other_parser as bench_parser
from study.options import PARSERS, parser_of
from study.plan import make_plan
from study.sweep_file import KEYS, parse_sweep
from tests.docs.pages import ROOT, blocks, commands, indented, pages, words_of

WORKED = {"new_backbone.md", "new_metric.md", "new_dataset.md"}
REST = [page for page in pages() if page.name not in WORKED]
WHOLE = "defaults: [backbone: dit-tiny, data: digits8]\naxes: {seed: [0]}\n"
SEARCHED = WHOLE.replace("{seed: [0]}", "{train.lr: 'loguniform(1e-4, 1e-2)'}")


def is_sweep(text: str) -> bool:
    return bool(re.search(rf"^({'|'.join(KEYS)}):", text, re.M))


def is_python(text: str) -> bool:
    if not re.match(r"(from|import|def) ", text):
        return False
    ast.parse(text)
    return True


SWEEPS = [(page.name, text) for page in REST for text in (*blocks(page, "yaml"), *indented(page)) if is_sweep(text)]
PYTHON = [(page.name, text) for page in REST for text in indented(page) if is_python(text)]


def test_all_kinds_of_code_are_found() -> None:
    assert {name for name, _ in SWEEPS} >= {"sweeps.md", "search.md", "slurm.md", "measuring.md", "costs.md"}
    assert {name for name, _ in PYTHON} >= {"analysis.md", "sweeps.md", "measuring.md"}
    assert {page.name for page in pages() if blocks(page, "python")} <= WORKED
    assert not [page.name for page in REST for text in blocks(page, "yaml") if not is_sweep(text)]


@pytest.mark.parametrize(("name", "text"), SWEEPS, ids=[f"{name}-{index}" for index, (name, _) in enumerate(SWEEPS)])
def test_sweeps_are_planned(name: str, text: str, tmp_path: Path) -> None:
    """One key alone is read within a sweep; searches and timings have plans of their own, and are read as well."""
    around = SEARCHED if "search:" in text else WHOLE
    whole = text if "axes:" in text else around + text
    sweep = parse_sweep(f"# Why?\n{whole}\noverrides: {{results: {tmp_path}}}\n", "page")
    if not (sweep.search or sweep.bench or sweep.tuned):
        assert make_plan(sweep).points


def official_dit(depth: int, hidden_size: int) -> nn.Module:
    """Stands in for the network of whoever follows measuring.md."""
    return build("dit-tiny", depth=depth, width=hidden_size)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/ablate_M, as who has run it would have it."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(ROOT / "results" / "published", folder / "results", ignore=shutil.ignore_patterns(".index"))
    return folder


@pytest.mark.parametrize(("name", "code"), PYTHON, ids=[name for name, _ in PYTHON])
def test_python_runs(name: str, code: str, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(published)
    names: dict[str, Any] = {"nn": nn, "Denoiser": Denoiser, "OfficialDiT": official_dit}
    exec(compile(code, name, "exec"), names)
    if "make" in names:
        ours = build("dit-tiny")
        theirs = names["make"](ours).state_dict()
        assert all(bool((value == theirs[key]).all()) for key, value in ours.state_dict().items())


OTHERS = [
    (page.name, line)
    for page in pages()
    if page.name not in ("README.md", "cluster.md")  # carried out, and parsed with the run's own grammar, elsewhere
    for line in commands(page)
    if re.match(r"python -m study\.\w+ ", line)
]


@pytest.mark.parametrize(("page", "line"), OTHERS, ids=[f"{page}-{index}" for index, (page, _) in enumerate(OTHERS)])
def test_options_are_those_of_the_command(page: str, line: str) -> None:
    words = words_of(re.sub(r"\[(--[^]]*)\]", r"\1", line.split(" && ")[0]))  # optional words count as well
    module, given = words[2].removeprefix("study."), words[3:]
    if module.startswith("score."):
        assert (ROOT / "study" / f"{module.replace('.', '/')}.py").exists()
    elif (module, given[:1]) == ("data", ["encode"]):
        from study.latents.command import encode_parser

        encode_parser().parse_intermixed_args(given[1:])
    elif module == "bench" and given[0] in BENCH:
        bench_parser(given[0]).parse_args(given[1:])
    else:
        assert module in PARSERS
        parse = parser_of(module)
        given = ["verify" if word == "verify|prune|export|migrate" else word for word in given]
        (parse.parse_intermixed_args if module in ("sweep", "run") else parse.parse_args)(given)


def test_sweeps_md_has_every_key() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    table = text.split("## Every key")[1].split("\n## ")[0]
    told = {name for cell in re.findall(r"^\| (`[^|]*) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)}
    assert told == set(KEYS)
