"""docs/cluster.md: every command in it parses, and its hours are the plans'."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from study.compose import resolve
from study.estimate import estimate
from study.interchange.command import parser as interchange_parser
from study.latents.command import data_config, encode_parser
from study.options import data_parser, score_parser
from study.plan import make_plan
from study.sweep import arguments as sweep_parser
from study.sweep_file import read_sweep

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if "-m study." in line]


def parts(command: str) -> tuple[str, list[str]]:
    """The module, and its arguments; places are left out, for there is nothing here."""
    words = shlex.split(command)
    start = next(index for index, word in enumerate(words) if word.startswith("study."))
    return words[start], [word for word in words[start + 1 :] if not word.startswith("data.path=")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    module, words = parts(command)
    if module == "study.sweep":
        options = sweep_parser().parse_intermixed_args(words)
        assert make_plan(read_sweep(options.file, [*options.words, "results=/nonexistent"])).points
    elif module == "study.run":
        assert resolve(words).train.images == 12_800
    elif module == "study.data" and words[0] == "encode":
        given = encode_parser().parse_intermixed_args(words[1:])
        assert data_config(given.words).size == 256
    elif module in PARSERS:
        PARSERS[module].parse_args(words)
    else:
        assert module in ("study.status", "study.cost", "study.report")
        with pytest.raises(SystemExit, match="0"):
            __import__(f"{module}{'.__main__' * (module == 'study.cost')}", fromlist=["main"]).main(["--help"])


PARSERS = {"study.data": data_parser(), "study.interchange": interchange_parser(), "study.score": score_parser()}


def test_there_is_a_command_for_every_step() -> None:
    assert {parts(command)[0] for command in COMMANDS} >= {
        "study.data", "study.sweep", "study.run", "study.status", "study.score", "study.interchange", "study.report",
    }  # fmt: skip


def test_hours_are_those_of_the_plans() -> None:
    """The table of recipes, and GPU-hours of the run that the page is about."""
    rows = re.findall(r"^\| (`sweeps/.*?) \| .* \| ([\d,]+(?:, \d+)?) \|$", PAGE, re.M)
    told = {}
    for files, hours in rows:
        names = re.findall(r"`sweeps/(\w+)\.yaml`", files)
        told.update(zip(names, hours.split(", ") if len(names) > 1 else [hours], strict=True))
    assert len(told) == 8
    for name, hours in told.items():
        plan = make_plan(read_sweep(ROOT / "sweeps" / f"{name}.yaml", ["results=/nonexistent"]))
        speed = plan.sweep.throughput
        assert speed is not None
        found = speed.gpus * sum(estimate(point.config, speed).seconds for point in plan.points) / 3600
        assert int(hours.replace(",", "")) == pytest.approx(found, rel=0.02, abs=0.6)
    assert "about 4,260 GPU-hours" in PAGE


def test_hours_of_sampling_are_evaluations_over_the_stated_share() -> None:
    """50,000 images, 250 steps, and twice as many evaluations with guidance."""
    plan = make_plan(read_sweep(ROOT / "sweeps" / "paper_imagenet256.yaml", ["results=/nonexistent"]))
    assert plan.sweep.throughput is not None
    gmacs = plan.points[0].config.backbone.macs().total / 1e9
    hours = 50_000 * 250 * gmacs / (plan.sweep.throughput.of("diffussm") / 8) / 3600
    assert f"about {hours:.0f} and {2 * hours:.0f} GPU-hours" in PAGE
