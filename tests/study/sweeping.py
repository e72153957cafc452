"""What the tests of sweeps share: a small sweep of fake runs, and a look at the store it leaves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import study.launch.server
from study.config import RunConfig
from study.results import Row, read_rows
from study.run_directory import State
from study.sweep import leave, main

# A server that has imported what sweeps do: a sweep then starts in a tenth of the time.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["study.execute", "study.launch.local", "study.plan_table", "study.answer"])

ROOT = Path(__file__).parents[2]

SWEEP = """\
# Which learning rate?
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 64}
axes:
  train.lr: [0.001, 0.002]
  seed: [0, 1, 2, 3, 4, 5]
baseline: {train.lr: 0.001}
launcher: {name: local, workers: 2, tries: 50}
"""


def sweep_file(folder: Path, text: str = SWEEP, name: str = "lrs") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class Forked:
    """`python -m study.sweep` with other runs, as far as its process is concerned, without importing anything."""

    def __init__(self, work: Callable[[RunConfig], State], folder: Path, *words: str) -> None:
        self._said = folder / "stderr"
        self._process = _SERVER.Process(target=_sweep, args=(work, self._said, words))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def finish(self) -> tuple[int, str]:
        """Its status, and what it said on stderr."""
        self._process.join(120)
        assert self._process.exitcode is not None
        return self._process.exitcode, self._said.read_text(encoding="utf-8") if self._said.exists() else ""


def _sweep(work: Callable[[RunConfig], State], said: Path, words: tuple[str, ...]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal would have started it
    study.launch.server.PRELOADED[:] = ["study.launch.worker"]  # all that a fake run needs
    with said.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    leave(main(words, work))


def start(kind: str, *words: str) -> subprocess.Popen[str]:
    """A sweep of fake runs in its own process group."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.study.fake_sweep", kind, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def all_rows(results: Path) -> dict[str, list[Row]]:
    return {path.parent.name: read_rows(path) for path in sorted(results.glob("runs/*/rows.jsonl"))}


def assert_store_whole(results: Path) -> None:
    """No run was done twice or by two at once, and no writer's leftover or half a file is there."""
    assert not list(results.glob("runs/*/violation"))
    assert not list(results.glob("runs/*/.*.tmp"))
    all_rows(results)


def busy_workers(results: Path) -> list[int]:
    """Processes that are at a run now."""
    pids = []
    for marker in results.glob("runs/*/active"):
        try:
            pids.append(int(marker.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            continue
    return pids


def wait_until_busy(process: subprocess.Popen[str] | Forked, results: Path) -> bool:
    """False if the sweep ended first."""
    while process.poll() is None:
        if busy_workers(results):
            return True
        time.sleep(0.005)
    return False


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
