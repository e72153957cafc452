"""A small study on the private cluster: submitted, watched, disturbed, and held against an undisturbed one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from study import status
from study.checkpoint import CheckpointFolder
from study.launch.slurm_cluster import Job, queue
from study.launch.slurm_record import open_records
from study.results import read_rows
from study.rows import SPEED_PROTOCOL
from study.run_directory import RunDirectory, State
from study.sweep import main
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).parents[2]
SLOW = Path(__file__).parent / "slow"
STEPS = 150
SWEEP = f"""\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides:
  train.batch: 4
  train.images: {4 * STEPS}
  train.validate_images: 4
  train.validate_bins: 2
  train.ema: [0.99]
  log.every: 20
  log.checkpoint_every: 20
axes: {{seed: [0]}}
"""
PATIENCE = 600.0  # seconds until a wait counts as failed: machines that test are busy

T = TypeVar("T")
_one_at_a_time = threading.Lock()  # hydra and the standard streams belong to the process


def call(*words: str) -> tuple[int, str]:
    """`python -m study.sweep` in this process: its exit code, and all it said."""
    said = io.StringIO()
    with _one_at_a_time, redirect_stdout(said), redirect_stderr(said):
        return main(list(words)), said.getvalue()


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def start(*words: str) -> subprocess.Popen[str]:
    """The same without waiting for its end."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], T], what: str) -> T:
    """What the condition gave when it held."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"still not: {what}")
        time.sleep(0.2)
    return found


@dataclass
class Study:
    """One sweep of one or a few runs, with a store of its own."""

    folder: Path
    cluster: Cluster | None
    pause: str = "0.1"  # seconds per step; with colons, for each start of the job
    nice: int = 0  # of jobs that are so many that they would hold up the others
    text: str = SWEEP
    words: tuple[str, ...] = ()
    seen: set[str] = field(default_factory=set)  # everything status ever said

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "sweep.yaml"
        self.file.write_text(self.text, encoding="utf-8")
        self.results = self.folder / "results"
        self.gate = self.folder / "gate"  # once it is there, no step is slow any more

    def sweep(self, *words: str) -> str:
        """Submit what is missing; what the command said."""
        code, said = call(*self.arguments(*words))
        assert code == 0, said
        return said

    def arguments(self, *words: str) -> tuple[str, ...]:
        network = "MASTER_ADDR=127.0.0.1 GLOO_SOCKET_IFNAME=lo"  # the nodes' names are known to SLURM only
        pause = f"STEP_PAUSE={self.pause} STEP_GATE={self.gate}" + (f" STEP_NICE={self.nice}" if self.nice else "")
        setup = f'launcher.setup=["export {pause} PYTHONPATH={SLOW} {network}"]'
        return str(self.file), f"results={self.results}", "launcher=slurm", setup, *self.words, *words

    @property
    def runs(self) -> list[RunDirectory]:
        return [RunDirectory(self.results, path.name) for path in sorted((self.results / "runs").iterdir())]

    @property
    def run(self) -> RunDirectory:
        (only,) = self.runs
        return only

    def state(self) -> State:
        return self.run.read_state()

    def status(self) -> str:
        """What `study.status` says of the sweep at this moment."""
        said = "\n".join(status.describe(self.results, "sweep"))
        self.seen.update(said.splitlines())
        return said

    def jobs(self) -> list[Job]:
        numbers = {record.job for record in open_records(self.results / "sweep")}
        return [job for job in queue() or [] if job.array in numbers]

    @property
    def job(self) -> Job:
        until(lambda: len(self.jobs()) == 1, "one job")
        return self.jobs()[0]

    def submit(self) -> None:
        self.sweep()
        self.reach(1)

    def reach(self, images: int) -> None:
        """Wait until the run has a checkpoint at so many images or more."""
        until(lambda: self.state().images >= images and self.state().status == "running", f"{images} images")

    def until_status(self, *texts: str) -> None:
        until(lambda: all(text in self.status() for text in texts), f"{texts} in:\n{self.status()}")

    def finish(self) -> None:
        """Until all is done; who would wait for a job that ended calls the sweep again."""

        def over() -> bool:
            states = [run.read_state() for run in self.runs]
            assert not any(state.status == "failed" for state in states), self.status()
            return all(state.status == "done" for state in states)

        until(over, f"done\n{self.status()}")


def undisturbed(folder: Path) -> RunDirectory:
    """The same run, with nobody to disturb it."""
    study = Study(folder, None)
    done = command("study.sweep", str(study.file), f"results={study.results}", "launcher=inline")
    assert done.returncode == 0, done.stderr
    return study.run


def left_by(run: RunDirectory) -> dict[str, object]:
    """Everything of a finished run that two executions must share to the byte."""
    last = CheckpointFolder(run.checkpoints, run.identity).load(4 * STEPS)
    rows = [(row.metric, row.value, row.interval) for row in read_rows(run.rows) if row.protocol != SPEED_PROTOCOL]
    return {
        "tensors": {name: tensor.numpy().tobytes() for name, tensor in last.tensors.items()},
        "counters": last.facts["trainer"],
        "curve": run.curve.read_bytes(),
        "rows": rows,
    }
