"""The parts of the cluster launcher that need no cluster: packs, tables, what a signal meant, records."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.launch.slurm_cluster import COLUMNS, Job, parse_ended, parse_job, this_task
from study.launch.slurm_end import end_of
from study.launch.slurm_job import Standing, reason_to_leave, seconds_of
from study.launch.slurm_packs import packed
from study.launch.slurm_record import Place, Submission, is_over, jobs_of, open_records, places
from study.launch.slurm_script import reason_of
from study.launch.slurm_snapshot import snapshot
from study.launch.work import Task
from study.lease import is_restart
from study.run_directory import Failure

RUNNING = Standing("RUNNING", 0, False, 3600.0)


def job(**given: object) -> Job:
    return replace(Job("7", 0, "7", "RUNNING", 0, 0, "s.abcd", "n1", "None"), **given)  # type: ignore[arg-type]


def record(folder: Path, **given: object) -> Submission:
    plain = Submission(
        str(folder / "s" / "slurm"), "abcd", "7", (("a", "b"), ("c",)), 1.0, "c", "me", 60, 90, 1, "code"
    )
    return replace(plain, **given)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.0, 700.0), max_size=60), st.integers(1, 20))
def test_packs_hold_every_run_once_in_order_and_within_both_bounds(seconds: Sequence[float], longest: int) -> None:
    tasks = [Task("results", str(number)) for number in range(len(seconds))]
    cost = dict(zip(tasks, seconds, strict=True))
    packs = packed(tasks, seconds, 600.0, longest)
    assert [task for pack in packs for task in pack] == tasks
    for pack in packs:
        assert 1 <= len(pack) <= longest
        assert len(pack) == 1 or sum(cost[task] for task in pack) <= 600.0 + 1e-6
    for one, after in pairwise(packs):  # none was closed while there was room
        assert len(one) == longest or sum(cost[task] for task in one) + cost[after[0]] > 600.0 - 1e-6


@given(
    st.builds(
        Job,
        array=st.integers(1, 10**8).map(str),
        index=st.integers(0, 10**5),
        number=st.integers(1, 10**8).map(str),
        state=st.sampled_from(["PENDING", "RUNNING", "NODE_FAIL", "OUT_OF_MEMORY"]),
        restarts=st.integers(0, 999),
        code=st.integers(0, 255),
        name=st.from_regex(r"[A-Za-z0-9_.\-]{1,70}", fullmatch=True),
        nodes=st.sampled_from(["", "n0", "node[01-12,14]"]),
        reason=st.sampled_from(["None", "Priority", "ReqNodeNotAvail, UnavailableNodes:n[1-3]"]),
    )
)
def test_a_row_of_squeue_is_read_as_it_was_meant(meant: Job) -> None:
    ending = meant.code << 8 | (9 if meant.code == 0 else 0)  # of a job that a signal ended, only the signal
    values = (meant.array, meant.index, meant.number, meant.state, meant.restarts, ending, meant.name, meant.nodes)
    line = "".join(str(value).ljust(width) for value, width in zip(values, COLUMNS.values(), strict=True))
    assert parse_job(line + meant.reason.ljust(200)) == meant


def test_a_job_that_is_no_array_is_its_own_first_task() -> None:
    values = ("9", "N/A", "9", "PENDING", "0", "0", "s.abcd", "")
    line = "".join(value.ljust(width) for value, width in zip(values, COLUMNS.values(), strict=True))
    assert parse_job(line + "Priority") == Job("9", 0, "9", "PENDING", 0, 0, "s.abcd", "", "Priority")


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("9_2|11|CANCELLED by 0|0:15|s.abcd|n1", Job("9", 2, "11", "CANCELLED", 0, 0, "s.abcd", "n1", "")),
        ("9|9|FAILED|66:0|s.abcd|n[1-2]", Job("9", 0, "9", "FAILED", 0, 66, "s.abcd", "n[1-2]", "")),
    ],
)
def test_a_row_of_accounting_is_read_as_it_was_meant(line: str, meant: Job) -> None:
    assert parse_ended(line) == meant


@pytest.mark.parametrize(
    ("job", "array", "index", "name"),
    [
        ("9", "7", "1", "9"),
        ("7", "7", "2", "7_2"),  # the last task of an array: 7 would be all of it
        ("7", "", "", "7"),
        ("9", "7", "2", "9"),  # no array itself, but submitted by a task of one
        ("", "", "", ""),
    ],
)
def test_a_job_speaks_of_itself_alone(
    job: str, array: str, index: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SLURM_JOB_ID": job, "SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable, raising=False)
    assert this_task() == name


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:02:00", 120), ("1-00:00:01", 86401), ("12:30:00", 45000), ("UNLIMITED", float("inf")), ("", float("inf"))],
)
def test_durations_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_what_scontrol_says_of_a_job_is_read() -> None:
    line = "JobId=2 JobState=COMPLETING Reason=None Restarts=1 RunTime=00:00:01 TimeLimit=00:05:00 PreemptTime=None"
    began = "2026-11-21T16:00:00"
    found = Standing.read(f"{line} StartTime={began} EndTime={began}", now=moment(began) + 60)
    assert found == Standing("COMPLETING", 1, False, 240.0)


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("number", "standing", "failure", "requeue"),
    [
        (signal.SIGUSR2, RUNNING, Failure.PREEMPTED, True),
        (signal.SIGTERM, RUNNING, Failure.PREEMPTED, True),  # the grace time of a preemption
        (signal.SIGUSR2, replace(RUNNING, preempted=True, left=80.0), Failure.PREEMPTED, True),
        (signal.SIGUSR2, replace(RUNNING, left=100.0), Failure.TIMED_OUT, True),
        (signal.SIGTERM, replace(RUNNING, state="COMPLETING", left=0.5), Failure.TIMED_OUT, True),
        (signal.SIGTERM, replace(RUNNING, state="COMPLETING"), Failure.STOPPED, False),
        (signal.SIGTERM, replace(RUNNING, state="CANCELLED"), Failure.STOPPED, False),
        (signal.SIGTERM, replace(RUNNING, state="COMPLETING", restarts=1), Failure.PREEMPTED, False),
        (signal.SIGTERM, replace(RUNNING, state="PREEMPTED"), Failure.PREEMPTED, False),
        (signal.SIGUSR2, None, Failure.PREEMPTED, True),
        (signal.SIGTERM, None, Failure.PREEMPTED, False),
    ],
)
def test_what_a_signal_meant(number: int, standing: Standing | None, failure: Failure, requeue: bool) -> None:
    leave = reason_to_leave(number, standing, warning=90, restart=0)
    assert (leave.failure, leave.requeue) == (failure, requeue)


def test_a_zombie_never_asks_for_its_job_to_come_back() -> None:
    assert not reason_to_leave(signal.SIGTERM, replace(RUNNING, restarts=3), warning=90, restart=2).requeue


@pytest.mark.parametrize(
    ("job", "other", "later"),
    [("7.1", "7.0", True), ("7.0", "7.1", False), ("7.1", "7.1", False), ("8.1", "7.0", False), ("", "", False)],
)
def test_only_a_later_start_of_the_same_job_takes_over(job: str, other: str, later: bool) -> None:
    assert is_restart(job, other) == later


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        ("TIMEOUT", Failure.TIMED_OUT),
        ("CANCELLED", Failure.STOPPED),
        ("NODE_FAIL", Failure.NODE_LOST),
        ("PREEMPTED", Failure.PREEMPTED),
        ("OUT_OF_MEMORY", Failure.OUT_OF_MEMORY),
        ("FAILED", Failure.KILLED),
    ],
)
def test_how_slurm_ended_a_job_is_the_class_of_its_run(tmp_path: Path, state: str, failure: Failure) -> None:
    assert end_of(Place(record(tmp_path), 0, job(state=state)))[0] == failure


def test_a_complaint_in_the_jobs_log_is_told(tmp_path: Path) -> None:
    place = Place(record(tmp_path), 1, job(state="FAILED"))
    place.log.parent.mkdir(parents=True)
    place.log.write_text("warming up\nerror: no such module\ndone\n", encoding="utf-8")
    assert end_of(place) == (Failure.KILLED, "error: no such module")


def test_one_of_several_processes_is_lost_not_killed(tmp_path: Path) -> None:
    assert end_of(Place(record(tmp_path, processes=2), 0, job(state="FAILED")))[0] == Failure.NODE_LOST


def test_records_know_where_each_run_is_until_their_jobs_have_ended(tmp_path: Path) -> None:
    kept = record(tmp_path)
    kept.path.parent.mkdir(parents=True)
    kept.write()
    assert open_records(tmp_path / "s") == [kept]
    queue = [job(index=0), job(index=1, state="PENDING"), job(name="other")]
    found = places([kept], queue)
    assert {run: place.job for run, place in found.items()} == {"a": queue[0], "b": queue[0], "c": queue[1]}
    assert not is_over(kept, queue)
    assert is_over(kept, [job(state="COMPLETED"), job(index=1, state="FAILED"), job(name="s.other")])
    kept.close()
    assert open_records(tmp_path / "s") == []


def test_an_array_without_a_number_is_found_by_its_name(tmp_path: Path) -> None:
    unfinished = record(tmp_path, job="")
    assert list(jobs_of(unfinished, [job(), job(name="s.other")])) == [job()]


def test_slurms_own_words_are_found_in_submitits() -> None:
    said = "sbatch: error: Invalid qos\nsbatch: error: Batch job submission failed: Invalid qos specification\n"
    assert reason_of(said) == "Invalid qos; Batch job submission failed: Invalid qos specification"


def test_an_equal_snapshot_is_used_again_and_holds_what_runs_need(tmp_path: Path) -> None:
    first = snapshot(tmp_path)
    assert snapshot(tmp_path) == first
    assert {path.name for path in tmp_path.iterdir()} == {first.name}
    files = {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()}
    assert {"study/run.py", "models/dit.py", "study/score/extractors/manifest.json", "snapshot.json"} <= files
    assert not any("__pycache__" in name for name in files)
    assert sum(os.path.getsize(first / name) for name in files) < 3_000_000
