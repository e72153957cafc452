"""The body of a job without a cluster around it: what it does, skips, and says by its exit code."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import study.run
from study.config import RunConfig
from study.execute import write_plan
from study.launch import slurm_job
from study.launch.slurm_job import Body, Leave, Signals, heard
from study.launch.slurm_record import Submission
from study.lease import take
from study.plan import make_plan
from study.run_directory import Failure, RunDirectory, State, Status
from study.sweep_file import read_sweep
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file


@pytest.fixture
def body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Body:
    """One job with the six runs of a sweep, which do as their seeds say; 2 and 5 would kill this process."""
    text = SWEEP.replace("[0.001, 0.002]", "[0.001]").replace("[0, 1, 2, 3, 4, 5]", "[0, 3, 4, 6]")
    plan = make_plan(read_sweep(sweep_file(tmp_path, text), [f"results={tmp_path / 'results'}"]))
    write_plan(plan, list(plan.points))
    monkeypatch.setattr(study.run, "run", fake_runs.failing)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    runs = tuple(point.run for point in plan.points)
    folder = str(plan.folder / "slurm")
    submission = Submission(folder, "abcd", "7", (runs,), time.time() - 1, "c", "me", 60, 90, 1, "code")
    return Body(submission, 0, Signals())


def states(body: Body) -> list[State]:
    return [RunDirectory(body.submission.results, run).read_state() for run in body.runs]


def test_a_failed_run_is_told_by_the_exit_code_and_ends_no_other(body: Body) -> None:
    assert body.work() == 1
    assert [state.status for state in states(body)] == ["done", "failed", "failed", "done"]
    assert [state.failure for state in states(body)] == [None, "bug", "diverged", None]


def test_a_restarted_job_neither_repeats_what_is_done_nor_what_failed_in_it(body: Body) -> None:
    body.work()
    assert body.work() == 1
    assert [state.attempts for state in states(body)] == [1, 1, 1, 1]


def test_what_failed_before_the_submission_is_tried_again(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    body.work()
    monkeypatch.setattr(study.run, "run", fake_runs.quick)
    later = Body(Submission(**{**vars(body.submission), "submitted": time.time()}), 0, Signals())
    assert later.work() == 0
    assert [state.status for state in states(body)] == ["done"] * 4


def test_a_run_in_other_hands_is_left_to_them(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.run, "run", fake_runs.quick)
    lease = take(RunDirectory(body.submission.results, body.runs[0]).path)
    assert lease is not None
    with lease:
        assert body.work() == 0
    assert [state.status for state in states(body)] == ["pending", "done", "done", "done"]


def test_a_silent_end_is_noted_before_the_run_continues(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.run, "run", fake_runs.quick)
    noted: list[tuple[Failure, str]] = []
    real = slurm_job.note_silent_end

    def note(task: object) -> State:
        state = real(task)  # type: ignore[arg-type]
        if state.failure:
            noted.append((state.failure, state.message or ""))
        return state

    monkeypatch.setattr(slurm_job, "note_silent_end", note)
    directory = RunDirectory(body.submission.results, body.runs[0])
    directory.write_state(State(), status=Status.RUNNING, attempts=1)
    assert body.work() == 0
    ((failure, message),) = noted
    assert failure is Failure.NODE_LOST
    assert "fell silent; job 7 continues it" in message
    assert states(body)[0].attempts == 2


@pytest.mark.parametrize(
    ("leave", "asked", "failure"),
    [
        (Leave(Failure.TIMED_OUT, "20 s before its time limit", True), 1, "timed out"),
        (Leave(Failure.STOPPED, "its job was cancelled", False), 0, "stopped"),
    ],
)
def test_a_signal_lets_the_run_save_and_the_job_return_where_it_should(
    body: Body, monkeypatch: pytest.MonkeyPatch, leave: Leave, asked: int, failure: str
) -> None:
    """The signal comes before the run listens: it is passed on until it is heard."""
    requeued: list[bool] = []
    monkeypatch.setattr(study.run, "run", lambda config: fake_runs.work(config, pause=0.5))
    monkeypatch.setattr(slurm_job, "AGAIN", 0.2)
    monkeypatch.setattr(slurm_job.Standing, "asked", lambda: None)
    monkeypatch.setattr(slurm_job, "reason_to_leave", lambda *given, **more: leave)
    monkeypatch.setattr(slurm_job, "requeue", lambda: requeued.append(True) or True)
    before = {number: signal.getsignal(number) for number in slurm_job.POLITE}
    try:
        with body.signals as signals:
            real = slurm_job.note_silent_end

            def interrupted(task: object) -> State:
                os.kill(os.getpid(), signal.SIGUSR2)
                return real(task)  # type: ignore[arg-type]

            monkeypatch.setattr(slurm_job, "note_silent_end", interrupted)
            code = body.work()
            assert signals.numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 128 + signal.SIGUSR2
    first, *others = states(body)
    assert (first.status, first.failure) == ("pending", failure)
    assert first.message == f"{leave.message}, job 7"
    assert {state.attempts for state in others} == {0}
    assert len(requeued) == asked


def test_twice_at_the_limit_without_a_step_is_a_failure(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    from study.launch.work import Task

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    task = Task(body.submission.results, body.runs[0])
    task.directory.write_state(State(), status=Status.PENDING, attempts=2, images=64, failure=Failure.PREEMPTED)
    body.images = 64
    assert body.note(task, Leave(Failure.TIMED_OUT, "at its time limit", True))
    state = states(body)[0]
    assert (state.status, state.failure) == ("failed", "timed out")
    assert "give launcher.time more" in (state.message or "")


def test_a_later_run_of_a_pack_did_not_have_the_whole_time(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    from study.launch.work import Task

    monkeypatch.setattr(study.run, "run", fake_runs.quick)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    task = Task(body.submission.results, body.runs[1])
    body.do(Task(body.submission.results, body.runs[0]))
    body.do(task)
    task.directory.write_state(State(), status=Status.PENDING, attempts=2, failure=Failure.PREEMPTED)
    assert not body.note(task, Leave(Failure.TIMED_OUT, "at its time limit", True))
    assert states(body)[1].status == "pending"


def test_a_finished_run_is_handed_on_for_scores_that_it_lacks(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    body.work()
    handed: list[int] = []

    def scoring(config: RunConfig) -> State:
        handed.append(config.seed)
        return fake_runs.quick(config)

    monkeypatch.setattr(study.run, "run", scoring)
    body.work()
    assert handed == [0, 6]


@pytest.mark.parametrize(
    ("message", "number"),
    [("stopped by SIGUSR2", signal.SIGUSR2), ("stopped by SIGINT", signal.SIGINT), ("full disk", signal.SIGTERM)],
)
def test_a_signal_that_only_the_run_heard_is_known_by_its_word(message: str, number: int) -> None:
    assert heard(State(message=message)) == number
