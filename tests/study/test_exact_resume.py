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


def store(words: list[str], folder: Path) -> list[str]:
    return [*words, f"results={folder}"]


def attempt(words: list[str], chance: random.Random, duration: float, inside_a_write: bool) -> bool:
    """Start or continue the run and kill it; whether the kill came before its end."""
    process = start(words, die_at_write=chance.randint(5, 26) if inside_a_write else None)
    process.join(None if inside_a_write else chance.uniform(0.05, 0.5) * duration)
    if process.is_alive():
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def finish(words: list[str]) -> RunDirectory:
    process = start(words)
    process.join()
    assert process.exitcode == 0
    directory = RunDirectory.of(resolve(words))
    assert directory.read_state().status is Status.DONE
    return directory


def check_equal(undisturbed: RunDirectory, directory: RunDirectory) -> None:
    expected, found = what_must_not_differ(undisturbed), what_must_not_differ(directory)
    assert {name: found[name] == expected[name] for name in expected} == dict.fromkeys(expected, True)
    assert json.loads(directory.curve.read_text().splitlines()[-1])["images"] == IMAGES
    assert not list(directory.path.rglob("*.tmp"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ten_kills_change_nothing(backbone: str, tmp_path: Path) -> None:
    words = [f"backbone={backbone}", *RUN]
    warm_up()  # the server's own start is not part of the run's duration
    began = time.monotonic()
    undisturbed = finish(store(words, tmp_path / "undisturbed"))
    duration = time.monotonic() - began

    chance, kills, stores = random.Random(backbone), 0, 0
    for number in range(5 * KILLS):
        if kills == KILLS:
            break
        disturbed = store(words, tmp_path / f"disturbed {stores}")
        if attempt(disturbed, chance, duration, inside_a_write=number % 2 == 1):
            kills += 1
        else:  # done too soon to be killed: check it, and kill another run, sooner
            check_equal(undisturbed, RunDirectory.of(resolve(disturbed)))
            stores, duration = stores + 1, 0.7 * duration
    assert kills == KILLS
    check_equal(undisturbed, finish(store(words, tmp_path / f"disturbed {stores}")))
