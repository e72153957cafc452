"""Killed ten times, a run ends with the very bytes of one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from study.compose import resolve
from study.run_directory import RunDirectory, Status
from tests.study.killed import start, warm_up
from tests.study.short_run import IMAGES, RUN, what_must_not_differ

BACKBONES = ("dit-tiny", "diffussm-tiny", "patchssm-tiny", "dis-tiny", "unet-tiny")
KILLS = 10


def finish(overrides: list[str]) -> RunDirectory:
    process = start(overrides)
    process.join()
    directory = RunDirectory.of(resolve(overrides))
    assert process.exitcode == 0
    assert directory.read_state().status is Status.DONE
    return directory


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ten_kills_change_nothing(backbone: str, tmp_path: Path) -> None:
    overrides = [f"backbone={backbone}", *RUN]
    warm_up()  # the server's own start is not part of the run's duration
    began = time.monotonic()
    undisturbed = finish([*overrides, f"results={tmp_path / 'undisturbed'}"])
    duration = time.monotonic() - began

    disturbed = [*overrides, f"results={tmp_path / 'disturbed'}"]
    chance = random.Random(backbone)
    kills = 0
    for attempt in range(KILLS):
        inside_a_write = attempt % 2 == 1
        process = start(disturbed, die_at_write=chance.randint(5, 26) if inside_a_write else None)
        process.join(None if inside_a_write else chance.uniform(0.05, 0.5) * duration)
        if process.is_alive():
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    directory = finish(disturbed)

    assert kills >= KILLS - 3  # a run that is done by then cannot be killed
    assert directory.read_state().attempts > 1
    assert not list(directory.path.rglob("*.tmp"))
    expected, found = what_must_not_differ(undisturbed), what_must_not_differ(directory)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)
    assert json.loads(directory.curve.read_text().splitlines()[-1])["images"] == IMAGES
