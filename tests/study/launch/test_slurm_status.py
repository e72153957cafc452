"""What status says of runs whose jobs SLURM knows, has lost, or does not tell about."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from study import cancel, status
from study.launch import slurm_cluster
from study.launch.slurm_cluster import Job
from study.launch.slurm_record import Submission, open_records
from study.lease import Holder, process_start, this_machine
from study.run_directory import Failure, RunDirectory, State, Status

RUN = "0123456789abcdef"
JOB = Job("7", 0, "7", "RUNNING", 0, 0, "s.abcd", "n1", "None")
Say = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One sweep of one run, submitted as job 7."""
    folder = tmp_path / "s"
    (folder / "slurm").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"points": [{"run": RUN, "label": "seed=0"}]}), encoding="utf-8")
    Submission(
        folder=str(folder / "slurm"),
        token="abcd",
        job="7",
        tasks=((RUN,),),
        submitted=time.time() - 60,
        cluster="c",
        user="me",
        minutes=60,
        warning=90,
        processes=1,
        code="",
    ).write()
    RunDirectory(tmp_path, RUN).path.mkdir(parents=True)
    return tmp_path


@pytest.fixture
def say(store: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """The line of the run, given its state, who has its lease, and what SLURM says."""

    def line(job: Job | None, state: State | None = None, holder: str | None = None) -> str:
        monkeypatch.setattr(status, "look", lambda records: None if job is None else [job])
        directory = RunDirectory(store, RUN)
        if state is not None:
            directory.write_state(state)
        if holder is not None:
            lease = directory.path / "leases" / "000001.json"
            lease.parent.mkdir()
            lease.write_text(json.dumps(asdict(Holder("n1", "another machine", 1, "1", holder, time.time()))))
        return status.describe(store, "s")[1]

    return line


def test_queued_with_its_reason(say: Say) -> None:
    told = say(replace(JOB, state="PENDING", reason="Priority", nodes=""))
    assert "queued" in told
    assert "job 7_0 waits: Priority" in told


def test_without_an_answer_it_counts_as_submitted(say: Say) -> None:
    assert "submitted       job 7_0" in say(None)


def test_running_on_a_node(say: Say) -> None:
    told = say(JOB, State(Status.RUNNING, attempts=1), "7.0")
    assert "running" in told
    assert "job 7_0 running on n1" in told


def test_a_lease_of_an_earlier_start_is_not_running(say: Say) -> None:
    """The other machine's heartbeat is still fresh, but SLURM has given that start up."""
    told = say(replace(JOB, state="PENDING", restarts=1, reason="BeginTime"), State(Status.RUNNING, attempts=1), "7.0")
    assert "queued" in told
    assert "restarted 1 times; node lost: " in told


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("NODE_FAIL", "node lost: its node was lost (7_0 on n1)"),
        ("TIMEOUT", "timed out: "),
        ("CANCELLED", "stopped: "),
        ("OUT_OF_MEMORY", "out of memory: "),
        ("FAILED", "killed: job 7_0 left with exit code 0 on n1"),
    ],
)
def test_an_end_without_a_word_has_slurms_class(say: Say, state: str, said: str) -> None:
    told = say(replace(JOB, state=state), State(Status.RUNNING, attempts=1))
    assert "to continue" in told
    assert said in told


def test_a_runs_own_word_comes_first(say: Say) -> None:
    told = say(replace(JOB, state="FAILED"), State(Status.FAILED, 1, failure=Failure.DIVERGED, message="loss is nan"))
    assert "failed" in told
    assert "diverged: loss is nan  (attempt 1)" in told


def test_a_job_that_could_not_begin_names_the_folder(say: Say, store: Path) -> None:
    told = say(replace(JOB, state="FAILED", reason="JobLaunchFailure"))
    assert f"job 7_0 could not be started on n1: is {store} shared with that node?" in told


def test_cancelling_is_noted_and_passed_on(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(slurm_cluster, "cancel", lambda name: asked.append(name) or "")
    monkeypatch.setattr(status, "look", lambda records: [replace(JOB, state="CANCELLED")])
    assert cancel.main(["s", "--results", str(store)]) == 0
    assert asked == ["s.abcd"]
    assert capsys.readouterr().out == "scancel s.abcd\n"
    assert open_records(store / "s")[0].cancelled
    assert "stopped: job 7_0 was cancelled" in status.describe(store, "s")[1]


def test_cancelling_a_local_run_interrupts_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_records(store / "s")[0].path.unlink()
    lease = RunDirectory(store, RUN).path / "leases" / "000001.json"
    lease.parent.mkdir()
    holder = Holder("here", this_machine(), os.getpid(), process_start(os.getpid()) or "", "", time.time())
    lease.write_text(json.dumps(asdict(holder)))
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert cancel.cancel(store / "s") == [f"{RUN}: process {os.getpid()} was asked to stop"]
    assert sent == [(os.getpid(), 2)]


def test_a_name_that_is_no_sweep_is_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cancel.main(["z", "--results", str(store)]) == 2
    assert capsys.readouterr().err.startswith("error: z is no sweep in ")


def test_watching_asks_slurm_now_and_then(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(status, "look", lambda records: asked.append(len(records)) or [JOB])
    glimpses = status.Glimpses()
    for _ in range(5):
        assert "job 7_0 running" in status.describe(store, "s", glimpses)[1]
    assert asked == [1]
