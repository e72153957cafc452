"""Runs that do almost nothing, leave the files of real ones, and notice when two do the same at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

from study.atomic import write_text
from study.config import RunConfig
from study.interruption import StopRequest
from study.results import Row, write_rows
from study.run_directory import Failure, RunDirectory, State, Status

STEPS = 8
METRICS = (
    ("val_loss", 1.0, "val"),
    ("fd", 7.0, "fd"),
    ("gmacs", 2.0, "cost-1"),
    ("params", 3.0, "cost-1"),
    ("train_seconds", 5.0, "speed-1"),
)
"""What every run leaves: name, size, protocol."""


def quick(config: RunConfig) -> State:
    return work(config, pause=0.0)


def slow(config: RunConfig) -> State:
    return work(config, pause=0.03)


def work(config: RunConfig, pause: float) -> State:
    directory = RunDirectory.of(config)
    state = directory.read_state()
    if state.status is Status.DONE:
        return state
    with alone(directory), StopRequest() as stop:
        directory.create(config)
        state = directory.write_state(
            state, status=Status.RUNNING, attempts=state.attempts + 1, failure=None, message=None
        )
        for step in range(STEPS):
            time.sleep(pause)
            directory.log.write_text(f"step {step + 1}/{STEPS}  images {step}  loss 0.5\n", encoding="utf-8")
            if stop.number is not None:
                message = f"stopped by {signal.Signals(stop.number).name}"
                failure = Failure.STOPPED if stop.number == signal.SIGINT else Failure.PREEMPTED
                return directory.write_state(state, status=Status.PENDING, failure=failure, message=message)
        directory.add_provenance(state.attempts, {"device": "cpu"})
        write_text(directory.curve, json.dumps({"images": config.train.images, "val_loss": 0.5}) + "\n")
        write_rows(directory.rows, rows(directory.identity, config))
        return directory.write_state(state, status=Status.DONE)


def rows(run: str, config: RunConfig) -> list[Row]:
    """A function of the config alone."""
    value = config.train.lr * 1000 + config.seed / 1000
    return [
        Row(run=run, metric=metric, value=value * scale, units="", n=1, protocol=protocol)
        for metric, scale, protocol in METRICS
    ]


class alone:  # noqa: N801
    """Marks a run as being done by this process; leaves `violation` if another live process is at it."""

    def __init__(self, directory: RunDirectory) -> None:
        self.marker = directory.path / "active"
        self.violation = directory.path / "violation"
        self.count = directory.path / "finished"

    def __enter__(self) -> None:
        other = self._other()
        if other or self.count.exists():
            self.violation.write_text(f"{os.getpid()} while {other or 'finished'}", encoding="utf-8")
        self.marker.write_text(str(os.getpid()), encoding="utf-8")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and RunDirectory(self.marker.parents[2], self.marker.parent.name).read_state().status is (
            Status.DONE
        ):
            self.count.touch()
        self.marker.unlink()

    def _other(self) -> str:
        try:
            pid = self.marker.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        return pid if pid and pid != str(os.getpid()) and _alive(int(pid)) else ""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def failing(config: RunConfig) -> State:
    """Dies, crashes or fails as the seed says."""
    directory = RunDirectory.of(config)
    if config.seed == 1 and directory.read_state().attempts == 0:
        state = directory.write_state(directory.read_state(), status=Status.RUNNING, attempts=1)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.seed == 3:
        raise RuntimeError("a bug\nwith a second line")
    if config.seed == 4:
        state = directory.read_state()
        return directory.write_state(
            state, status=Status.FAILED, attempts=state.attempts + 1, failure=Failure.DIVERGED, message="not finite"
        )
    if config.seed == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(config)


def on_a_full_disk(config: RunConfig) -> State:
    if config.seed == 3:
        raise RuntimeError("a bug")
    raise OSError(errno.ENOSPC, "No space left on device")


def stubborn(config: RunConfig) -> State:
    """Does not care to be stopped."""
    directory = RunDirectory.of(config)
    with StopRequest(), alone(directory):
        for _ in range(600):
            time.sleep(0.1)
    return directory.read_state()


def telling_its_gpu(config: RunConfig) -> State:
    """Slow enough for two workers to share three runs."""
    state = work(config, pause=0.05)
    RunDirectory.of(config).log.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"), encoding="utf-8")
    return state


def dying_at_once(work: object, threads: int, device: str | None) -> None:
    """In place of a worker's beginning."""
    os._exit(1)


def broken_at_once(work: object, threads: int, device: str | None) -> None:
    """In place of a worker's beginning, as when what it imports is half-written."""
    raise ImportError("cannot import name 'half' from 'written'")
