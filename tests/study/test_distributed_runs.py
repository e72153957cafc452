"""Runs on several ranks: the same numbers whatever their count, stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import tests.study.ranked as faults
from study.checkpoint import CheckpointFolder
from study.compose import resolve
from study.config import RunConfig
from study.distributed import Ranks
from study.launch.together import perform_together
from study.launch.work import Task
from study.lease import take
from study.results import read_rows
from study.run import run
from study.run_directory import Failure, RunDirectory, Status, read_curve
from tests.study.ranked import Act, do_run, finish, start, together
from tests.study.short_run import RUN, what_must_not_differ

SMALL = ["backbone.depth=1", "backbone.width=16", "backbone.heads=2", *RUN, "sample.count=5", "train.batch=6"]
STOPPED = 128 + signal.SIGTERM


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return resolve([*SMALL, f"results={tmp_path / 'results'}"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    config = resolve([*SMALL, f"results={tmp_path_factory.mktemp('alone')}"])
    assert run(config).status is Status.DONE
    return RunDirectory.of(config)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Of three, the order in which they are summed matters."""
    config = resolve([*SMALL, f"results={tmp_path_factory.mktemp('three')}"])
    assert together(3, do_run, config) == [0, 0, 0]
    return RunDirectory.of(config)


def same_curve(found: RunDirectory, expected: RunDirectory) -> None:
    """Within 1e-5 relative, as float32 sums of another order are."""
    mine, theirs = read_curve(found.curve), read_curve(expected.curve)
    assert [point.keys() for point in mine] == [point.keys() for point in theirs]
    for point, other in zip(mine, theirs, strict=True):
        assert point == pytest.approx(other, rel=1e-5)


def same_bytes(found: RunDirectory, expected: RunDirectory) -> None:
    mine, theirs = what_must_not_differ(found), what_must_not_differ(expected)
    assert {name: mine[name] == theirs[name] for name in theirs} == dict.fromkeys(theirs, True)


def test_three_ranks_give_the_curve_of_one(three: RunDirectory, alone: RunDirectory) -> None:
    same_curve(three, alone)
    assert three.identity == alone.identity
    assert json.loads(three.provenance.read_text())[0]["ranks"] == "3"
    assert {path.name for path in three.path.iterdir()} == {path.name for path in alone.path.iterdir()}


def test_stopped_and_resumed_with_other_counts(config: RunConfig, alone: RunDirectory) -> None:
    """One rank of two is asked to stop, all do, after the same step; four go on; one ends it."""
    directory = RunDirectory.of(config)
    assert together(2, do_run, config, faults.ask_rank_1_to_stop) == [STOPPED, STOPPED]
    state = directory.read_state()
    assert (state.status, state.failure, state.images) == (Status.PENDING, Failure.PREEMPTED, 30)
    processes = start(4, do_run, config, faults.stop_rank_3)
    assert finish(processes) == [STOPPED] * 4
    assert directory.read_state().images == 42
    assert run(config).status is Status.DONE
    assert [entry["ranks"] for entry in json.loads(directory.provenance.read_text())] == ["2", "4", "1"]
    assert {row.provenance["ranks"] for row in read_rows(directory.rows)} == {"2, 4, 1"}
    same_curve(directory, alone)


@pytest.mark.parametrize(
    ("fault", "lost", "failure"),
    [
        (faults.kill_rank_1, 1, Failure.NODE_LOST),
        (faults.ask_rank_1_to_stop, None, Failure.PREEMPTED),
        (faults.stop_rank_1_validating, None, Failure.PREEMPTED),
    ],
)
def test_resumed_with_the_same_count_every_byte_is_the_same(
    config: RunConfig, three: RunDirectory, fault: Act, lost: int | None, failure: Failure
) -> None:
    codes = together(3, do_run, config, fault)
    expected = [1 if failure is Failure.NODE_LOST else STOPPED] * 3
    if lost is not None:
        expected[lost] = -signal.SIGKILL
    assert codes == expected
    state = RunDirectory.of(config).read_state()
    assert (state.status, state.failure) == (Status.PENDING, failure)
    assert re.fullmatch(r"another of the 3 ranks was lost: [^/]+|stopped by SIGTERM", state.message or "")
    assert together(3, do_run, config) == [0, 0, 0]
    same_bytes(RunDirectory.of(config), three)


def test_stopped_while_sampling(config: RunConfig, three: RunDirectory) -> None:
    """One rank of three is asked to; what was drawn is kept."""
    assert together(3, do_run, config, faults.stop_rank_1_sampling) == [STOPPED] * 3
    directory = RunDirectory.of(config)
    assert directory.read_state().failure is Failure.PREEMPTED
    assert sorted(path.stem for path in directory.samples.glob("0*.npz")) == ["000000-000001", "000003-000005"]
    assert together(3, do_run, config) == [0, 0, 0]
    same_bytes(directory, three)


def test_a_silent_rank_is_lost(config: RunConfig, alone: RunDirectory) -> None:
    processes = start(2, do_run, config, faults.freeze_rank_1, timeout=8)
    processes[0].join(60)
    assert finish(processes, seconds=0) == [1, None]
    state = RunDirectory.of(config).read_state()
    assert (state.status, state.failure) == (Status.PENDING, Failure.NODE_LOST)
    assert run(config).status is Status.DONE
    same_curve(RunDirectory.of(config), alone)


def test_without_rank_0_the_others_end(config: RunConfig, alone: RunDirectory) -> None:
    assert together(2, do_run, config, faults.kill_rank_0) == [-signal.SIGKILL, 1]
    assert RunDirectory.of(config).read_state().status is Status.RUNNING  # a dead process's: the next one sees that
    assert together(2, do_run, config) == [0, 0]
    same_curve(RunDirectory.of(config), alone)


@pytest.mark.parametrize(
    ("fault", "failure", "message"),
    [
        (faults.exhaust_rank_1, Failure.OUT_OF_MEMORY, "rank 1 of 2: out of memory: no more of it"),
        (faults.poison_rank_1, Failure.DIVERGED, "loss or gradient not finite in step 6, 36 images into training"),
        (faults.fill_the_disk, Failure.STORAGE, "No space left on device"),
    ],
)
def test_whatever_happens_to_one_is_known_to_all(config: RunConfig, fault: Act, failure: Failure, message: str) -> None:
    assert together(2, do_run, config, fault) == [1, 1]
    state = RunDirectory.of(config).read_state()
    assert (state.status, state.failure) == (Status.FAILED, failure)
    assert message in (state.message or "")


def test_what_one_rank_cannot_do_stops_all_before_anything_is_written(config: RunConfig) -> None:
    assert together(2, do_run, config, faults.hide_data_from_rank_1) == [2, 2]
    assert not RunDirectory.of(config).path.exists()


def perform(ranks: Ranks, task: Task, expected: Sequence[str | None]) -> None:
    for status in expected:
        outcome = perform_together(task, run)
        assert (outcome.state.status if outcome.state else None) == status


def test_a_task_is_performed_once_by_all(config: RunConfig, alone: RunDirectory) -> None:
    directory = RunDirectory.of(config)
    directory.create(config)
    task = Task(config.results, directory.identity)
    lease = take(directory.path)
    assert lease is not None
    with lease:
        assert together(2, perform, task, [None]) == [0, 0]
    assert together(2, perform, task, ["done", "done"]) == [0, 0]
    assert directory.read_state().attempts == 1
    same_curve(directory, alone)


def test_a_task_with_a_bad_config(config: RunConfig) -> None:
    directory = RunDirectory.of(config)
    directory.create(config)
    directory.config.write_text(directory.config.read_text().replace("batch: 6", "batch: 1"))
    assert together(2, perform, Task(config.results, directory.identity), ["failed"]) == [0, 0]
    state = directory.read_state()
    assert state.failure is Failure.BAD_CONFIG
    assert state.message == "train.batch=1 is not valid with 2 ranks: must be at least one image each"


def test_a_done_run_gets_more_scores_from_rank_0_alone(tmp_path: Path) -> None:
    """The others wait; the numbers are those that one process gives the same samples."""
    found = {}
    for kept, world_size in (("true", 1), ("true", 2), ("false", 2)):
        words = [*SMALL, f"log.save_samples={kept}", f"results={tmp_path / kept / str(world_size)}"]
        plain = resolve(words)
        asked = resolve([*words, "score.metrics=[swd]"])
        assert together(2, do_run, plain) == [0, 0]
        assert together(world_size, do_run, asked) == [0] * world_size
        rows = [row for row in read_rows(RunDirectory.of(plain).rows) if row.metric.startswith("swd")]
        found[kept, world_size] = [(row.metric, row.value, row.n) for row in rows]
        assert not list(RunDirectory.of(plain).path.glob(".*.tmp"))
    assert len(found["true", 1]) == 2  # of the samples, and of real images
    assert found["true", 2] == found["true", 1]
    assert [metric for metric, _, _ in found["false", 2]] == [metric for metric, _, _ in found["true", 1]]


def torchrun(world_size: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world_size}", "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("shard", ["false", "true"])
def test_killed_under_torchrun_and_resumed_with_other_counts(
    config: RunConfig, alone: RunDirectory, shard: str
) -> None:
    """A rank of two is killed, then one of four; what is left is done by one."""
    directory, words = RunDirectory.of(config), [*SMALL, f"results={config.results}", f"machine.shard={shard}"]
    for world_size, step, rank, saved in ((2, "3", "1", 12), (4, "6", "2", 30)):
        done = torchrun(world_size, "tests.study.ranked", step, rank, *words)
        assert done.returncode != 0
        assert "Signal 9 (SIGKILL)" in done.stderr
        assert CheckpointFolder(directory.checkpoints, directory.identity).newest_facts() is not None
        assert directory.read_state().images <= saved + 6
    assert run(resolve(words)).status is Status.DONE
    assert [entry["ranks"] for entry in json.loads(directory.provenance.read_text())] == ["2", "4", "1"]
    same_curve(directory, alone)


def test_torchrun(tmp_path: Path, alone: RunDirectory) -> None:
    done = torchrun(2, "study.run", *SMALL, f"results={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train_seconds") == 1
    assert done.stderr.count("step 8/8") == 1
    same_curve(RunDirectory(tmp_path, alone.identity), alone)
