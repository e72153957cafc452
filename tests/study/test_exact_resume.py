"""Killed ten times, a run ends with the very bytes of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from study.compose import resolve
from study.config import RunConfig
from study.run_directory import RunDirectory, Status
from tests.study.killed import start, warm_up
from tests.study.short_run import IMAGES, RUN, what_must_not_differ

BACKBONES = {  # small, and with the random numbers that networks draw for themselves
    "dit-tiny": ["backbone.depth=1"],
    "diffussm-tiny": ["backbone.depth=1"],
    "patchssm-tiny": ["backbone.depth=1"],
    "dis-tiny": ["backbone.depth=2", "backbone.drop_path=0.2"],
    "unet-tiny": ["backbone.dropout=0.1"],
}
KILLS = 10


def attempt(config: RunConfig, chance: random.Random, duration: float, inside_a_write: bool) -> bool:
    """Start or continue the run and kill it; whether the kill came before its end."""
    process = start(config, die_at_write=chance.randint(5, 26) if inside_a_write else None)
    process.join(None if inside_a_write else chance.uniform(0.05, 0.5) * duration)
    if process.is_alive():
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def finish(config: RunConfig) -> RunDirectory:
    process = start(config)
    process.join()
    assert process.exitcode == 0
    directory = RunDirectory.of(config)
    assert directory.read_state().status is Status.DONE
    return directory


def check_equal(undisturbed: RunDirectory, directory: RunDirectory) -> None:
    expected, found = what_must_not_differ(undisturbed), what_must_not_differ(directory)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)
    assert json.loads(directory.curve.read_text().splitlines()[-1])["images"] == IMAGES
    assert not list(directory.path.rglob("*.tmp"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ten_kills_change_nothing(backbone: str, tmp_path: Path) -> None:
    config = resolve([f"backbone={backbone}", *BACKBONES[backbone], *RUN])
    warm_up()  # the server's own start is not part of the run's duration
    began = time.monotonic()
    undisturbed = finish(replace(config, results=str(tmp_path / "undisturbed")))
    duration = time.monotonic() - began

    chance, kills, stores = random.Random(backbone), 0, 0
    for number in range(5 * KILLS):
        if kills == KILLS:
            break
        disturbed = replace(config, results=str(tmp_path / f"disturbed {stores}"))
        if attempt(disturbed, chance, duration, inside_a_write=number % 2 == 1):
            kills += 1
        else:  # done too soon to be killed: check it, and kill another run, sooner
            check_equal(undisturbed, RunDirectory.of(disturbed))
            stores, duration = stores + 1, 0.7 * duration
    assert kills == KILLS
    check_equal(undisturbed, finish(replace(config, results=str(tmp_path / f"disturbed {stores}"))))
