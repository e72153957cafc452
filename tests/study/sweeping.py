"""What the tests of sweeps share: a small sweep of fake runs, and a look at the store it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from study.results import Row, read_rows

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


def start(kind: str, *words: str) -> subprocess.Popen[str]:
    """A sweep of fake runs in its own process group."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.study.fake_sweep", kind, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


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


def wait_until_busy(process: subprocess.Popen[str], results: Path) -> bool:
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
