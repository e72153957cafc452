"""What the cluster launcher makes of its own and other people's submissions, and of how jobs ended."""

from __future__ import annotations

import getpass
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from study import cancel
from study.launch import slurm, slurm_cluster, slurm_known, slurm_record
from study.launch.config import SlurmConfig
from study.launch.slurm import BusyError, Pack, Slurm
from study.launch.slurm_cluster import Job
from study.launch.slurm_known import FAILED, QUEUED, note_end
from study.launch.slurm_limits import Limits
from study.launch.slurm_record import Place, Submission, all_open_records, look, open_records
from study.launch.slurm_script import FullError, is_full
from study.launch.work import Task
from study.lease import take
from study.run_directory import Failure, RunDirectory, State, Status
from study.strict import ConfigError

JOB = Job("7", 0, "7", "RUNNING", 0, 0, "mine.abcd", "n1", "None")


def submitted(results: Path, sweep: str = "mine", **given: object) -> Submission:
    folder = results / sweep / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    user = getpass.getuser()
    plain = Submission(str(folder), "abcd", "7", (("a", "b"),), time.time() - 60, "c", user, 60, 90, 1, "code")
    return replace(plain, **given).write()  # type: ignore[arg-type]


def send_nothing(self: Slurm, packs: Sequence[Pack], queued: int, search: str = "", retry: object = ()) -> list[Pack]:
    return list(packs)


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Of the sweep `mine`, on the cluster `c`, without a cluster; it sends nothing."""
    for name in ("check_installed", "check_options"):
        monkeypatch.setattr(slurm, name, lambda *given: None)
    monkeypatch.setattr(slurm, "refusal", lambda flags: "")
    monkeypatch.setattr(slurm, "limits", lambda flags: Limits("c", 10, 10))
    monkeypatch.setattr(slurm_known, "IN_FLIGHT", 0.0)
    monkeypatch.setattr(Slurm, "_packs", lambda self, tasks: [[task] for task in tasks])
    monkeypatch.setattr(Slurm, "_send", send_nothing)
    return Slurm(SlurmConfig(), tmp_path / "mine")


def state_of(results: Path, run: str, **given: object) -> Task:
    directory = RunDirectory(results, run)
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.write_state(State(), **given)
    return Task(str(results), run)


def test_what_is_submitted_after_slurm_answered_is_not_judged(
    launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(tmp_path)

    def answer(records: Sequence[Submission]) -> list[Job]:
        submitted(tmp_path, "other", token="ef01", job="8")
        return [replace(JOB, state="COMPLETED")]

    monkeypatch.setattr(slurm_known, "look", answer)
    launcher._submit([])
    assert [record.job for record in all_open_records(tmp_path)] == ["8"]


def test_a_live_submitters_record_is_left_to_it(
    launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submitted(tmp_path, "other", job="")
    task = state_of(tmp_path, "a")
    monkeypatch.setattr(slurm_known, "look", lambda records: [])
    lease = take(Path(record.folder))
    assert lease is not None
    with lease:
        launcher._submit([task])
        assert open_records(tmp_path / "other") == [record]
        assert launcher.held == {QUEUED: 1}
    launcher._submit([task])
    assert open_records(tmp_path / "other") == []
    assert launcher.unsent == [task]


def test_another_users_record_is_left_to_them(launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = submitted(tmp_path, "other", job="", user="somebody")
    monkeypatch.setattr(slurm_known, "look", lambda records: [])
    task = state_of(tmp_path, "a")
    launcher._submit([task])
    assert open_records(tmp_path / "other") == [record]
    assert launcher.report()[0].startswith("1 runs are held by a call of somebody that ended before SLURM's answer: ")
    assert "--resubmit" in launcher.report()[0]
    assert Slurm(SlurmConfig(), tmp_path / "mine", resubmit=True)._known().hold(task) == ""


def test_a_follower_sends_what_a_lost_job_never_came_to_without_counting_a_try(
    launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(tmp_path)
    lost, never = state_of(tmp_path, "a", status=Status.RUNNING, attempts=1), Task(str(tmp_path), "b")
    never.directory.path.mkdir(parents=True)
    before = {task: task.directory.read_state() for task in (lost, never)}
    sent: list[Sequence[Task]] = []

    def send(packs: Sequence[Pack], queued: int) -> list[Pack]:
        sent.extend(packs)
        never.directory.write_state(State(), status=Status.DONE)
        return []

    monkeypatch.setattr(launcher, "_send", send)
    monkeypatch.setattr(slurm_known, "look", lambda records: [replace(JOB, state="FAILED")])
    monkeypatch.setattr(slurm, "ASK", -1.0)
    monkeypatch.setattr(slurm, "LOOK", 0.0)
    ends = list(launcher._follow(before, lambda: False))
    assert [(end.task, end.state.status, end.state.failure) for end in ends if end.state] == [
        (lost, Status.PENDING, Failure.KILLED),
        (never, Status.DONE, None),
    ]
    assert sent == [[never]]


@pytest.mark.parametrize(
    ("given", "jobs", "awaited"),
    [
        ({}, [JOB], True),
        ({}, [replace(JOB, state="FAILED")], False),
        ({}, [], False),  # SLURM has forgotten it: it comes no more
        ({}, None, True),
        ({"job": ""}, [], True),
        ({"cluster": "d"}, [], True),
    ],
)
def test_which_runs_may_still_come(
    launcher: Slurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    jobs: list[Job] | None,
    awaited: bool,
) -> None:
    submitted(tmp_path, **given)
    monkeypatch.setattr(slurm_known, "look", lambda records: jobs)
    assert launcher.awaited() == ({"a", "b"} if awaited else set())


def test_memory_fails_the_run_that_had_it_and_no_other_of_its_pack(
    launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed one is neither sent again by the call that notes it nor called queued; the other was never begun."""
    submitted(tmp_path)
    running, waiting = state_of(tmp_path, "a", status=Status.RUNNING, attempts=1), Task(str(tmp_path), "b")
    waiting.directory.path.mkdir(parents=True)
    monkeypatch.setattr(slurm_known, "look", lambda records: [replace(JOB, state="OUT_OF_MEMORY")])
    launcher._submit([running, waiting])
    states = [task.directory.read_state() for task in (running, waiting)]
    assert [(state.status, state.failure) for state in states] == [
        (Status.FAILED, Failure.OUT_OF_MEMORY),
        (Status.PENDING, None),
    ]
    assert launcher.unsent == [waiting]
    assert launcher.held == {FAILED: 1}
    assert "1 runs have failed meanwhile: " in launcher.report()[0]


def test_one_run_that_never_began_for_want_of_memory_has_failed(tmp_path: Path) -> None:
    place = Place(submitted(tmp_path, tasks=(("a",),)), 0, replace(JOB, state="OUT_OF_MEMORY"))
    task = Task(str(tmp_path), "a")
    task.directory.path.mkdir(parents=True)
    assert note_end(task, place)
    assert not note_end(task, place)  # said already


def test_a_follower_waits_for_new_ends_only(launcher: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried run is failed until its job begins; and another submitter does not end the follower."""
    task = state_of(tmp_path, "a", status=Status.FAILED, attempts=1, failure=Failure.BUG)
    done = state_of(tmp_path, "b", status=Status.RUNNING, attempts=1)
    before = {each: each.directory.read_state() for each in (task, done)}
    looks: list[int] = []

    def later(seconds: float) -> None:
        looks.append(len(looks))
        changed = done if len(looks) == 1 else task
        changed.directory.write_state(changed.directory.read_state(), status=Status.DONE, failure=None)

    def busy() -> None:
        raise BusyError("another process is submitting")

    launcher.unsent = [task]
    monkeypatch.setattr(launcher, "_submitting", busy)
    monkeypatch.setattr(slurm_known, "look", lambda records: None)
    monkeypatch.setattr(slurm, "ASK", -1.0)
    monkeypatch.setattr(time, "sleep", later)
    assert [outcome.task for outcome in launcher._follow(before, lambda: False)] == [done, task]


def test_a_queue_that_filled_up_meanwhile_leaves_the_rest_for_later(
    tmp_path: Path, launcher: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates policy\n"
    taken: list[Submission] = []

    def take_one(config: SlurmConfig, record: Submission) -> str:
        if len(taken) == 1:
            raise FullError(said)
        taken.append(record)
        return "7"

    monkeypatch.undo()
    monkeypatch.setattr(slurm, "send", take_one)
    monkeypatch.setattr(slurm, "snapshot", lambda folder: folder / "code")
    launcher.limits = Limits("c", 2, 10)
    launcher.folder.mkdir(parents=True)
    packs = [[Task(str(tmp_path), str(number))] for number in range(5)]
    left = launcher._send(packs, queued=0)
    assert left == packs[2:]
    assert launcher.submitted == ["7"]
    assert launcher.sent == 2
    assert is_full(said)
    assert not is_full("sbatch: error: Invalid qos")


def test_what_accounting_never_heard_the_end_of_is_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = submitted(tmp_path)
    monkeypatch.setattr(slurm_record, "queue", lambda users: [])
    monkeypatch.setattr(slurm_record, "ended", lambda numbers: [JOB])
    assert look([record]) == []
    over = replace(JOB, state="TIMEOUT")
    monkeypatch.setattr(slurm_record, "ended", lambda numbers: [over])
    assert look([record]) == [over]


@pytest.mark.parametrize(("state", "is_open"), [("PENDING", True), ("POWER_UP_NODE", True), ("TIMEOUT", False)])
def test_a_state_that_nobody_knows_may_still_come_to_something(state: str, is_open: bool) -> None:
    assert replace(JOB, state=state).is_open is is_open


def test_the_newest_submission_of_all_sweeps_counts(tmp_path: Path) -> None:
    newer = submitted(tmp_path, "a", submitted=2.0)
    older = submitted(tmp_path, "b", submitted=1.0)
    assert all_open_records(tmp_path) == [older, newer]


def test_a_record_that_is_closed_meanwhile_is_gone_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = submitted(tmp_path)
    kept = submitted(tmp_path, token="ef01")
    seen = sorted((tmp_path / "mine" / "slurm").glob("*.json"))
    record.close()
    record.close()  # another process was faster
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(seen))
    assert open_records(tmp_path / "mine") == [kept]


def test_a_cancellation_that_slurm_refuses_is_not_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = submitted(tmp_path, job="")
    (tmp_path / "mine" / "plan.json").write_text('{"points": []}', encoding="utf-8")
    monkeypatch.setattr(slurm_cluster, "cancel", lambda name: "the controller is away")
    monkeypatch.setattr("study.status.look", lambda records: None)
    assert cancel.main(["mine", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: scancel mine.abcd: the controller is away\n"
    assert open_records(tmp_path / "mine") == [record]


def test_a_name_that_squeues_column_would_cut_is_refused(launcher: Slurm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 70 letters"):
        Slurm(SlurmConfig(), tmp_path / ("x" * 71))
