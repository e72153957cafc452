"""A search by jobs of a cluster, without one: how many are sent, what each does, and when it goes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.config import RunConfig
from study.execute import Wishes
from study.launch import slurm, slurm_job, slurm_known
from study.launch.config import SlurmConfig
from study.launch.inline import Inline
from study.launch.slurm import Pack, Slurm
from study.launch.slurm_cluster import Job
from study.launch.slurm_job import Body, Signals, Standing
from study.launch.slurm_limits import Limits
from study.launch.slurm_record import Submission, open_records
from study.launch.work import Task
from study.run_directory import Failure, RunDirectory, State, Status
from study.search import cluster, worker
from study.search.book import FAILURE, Book
from study.search.cluster import Workforce, search_on_cluster, wanted
from study.search.command import Search, check, set_up
from study.search.hunt import Hunt
from study.search.worker import work_at_search
from study.sweep_file import read_sweep, to_yaml
from tests.study import fake_runs
from tests.study.search.fake_objectives import SWEEP, bowl_run, never
from tests.study.search.killed_search import Silent
from tests.study.sweeping import sweep_file


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """Six trials, none begun."""
    file = sweep_file(tmp_path, SWEEP.replace("launcher: inline", "launcher: {name: slurm, pack: 2}"))
    sweep = read_sweep(file, [f"results={tmp_path / 'r'}"])
    folder = tmp_path / "r" / sweep.name
    return Search(sweep, folder, set_up(sweep, folder, check(sweep, Wishes()), Wishes()))


@pytest.fixture
def body(search: Search, monkeypatch: pytest.MonkeyPatch) -> Body:
    """The one worker of an array."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(worker, "run", bowl_run)
    folder = search.folder.absolute() / "slurm"
    text = to_yaml(search.sweep)
    submission = Submission(str(folder), "abcd", "7", ((),), time.time(), "c", "me", 60, 90, 1, "code", search=text)
    return Body(submission, 0, Signals())


def book_of(search: Search) -> Book:
    return search.families[0][0]


@pytest.mark.parametrize(
    ("config", "workers"),
    [
        (SlurmConfig(pack=2), 3),
        (SlurmConfig(pack=1, parallel=4), 4),
        (SlurmConfig(pack=4), 2),
        (SlurmConfig(parallel=2), 2),  # short runs are packed by themselves
    ],
)
def test_a_worker_per_pack_of_open_trials(search: Search, config: SlurmConfig, workers: int) -> None:
    assert wanted(search, config) == workers


def test_a_worker_does_all_trials_and_leaves_the_files_of_any_search(
    search: Search, body: Body, tmp_path: Path
) -> None:
    """By the sweep as it was submitted, wherever the job finds itself and whatever became of the file."""
    (tmp_path / "lrs.yaml").write_text("nothing", encoding="utf-8")
    assert work_at_search(body) == 0
    assert {trial.state for trial in book_of(search).trials()} == {TrialState.COMPLETE}
    assert (search.folder / "trials.json").exists()
    assert wanted(search, SlurmConfig()) == 0


def test_a_fault_is_told_by_the_exit_code_and_ends_no_other_trial(
    search: Search, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []

    def first_wrong(config: RunConfig) -> State:
        seen.append(config)
        if len(seen) == 1:
            raise RuntimeError("a bug")
        return bowl_run(config)

    monkeypatch.setattr(worker, "run", first_wrong)
    assert work_at_search(body) == 1
    states = [trial.state for trial in book_of(search).trials()]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 5]
    assert search.failures == 1
    book_of(search).repeat([Failure.BUG])
    monkeypatch.setattr(worker, "run", bowl_run)
    again = Body(Submission(**{**vars(body.submission), "submitted": time.time()}), 0, Signals())
    assert work_at_search(again) == 0
    assert search.failures == 0


@pytest.mark.parametrize("during", [True, False], ids=["during a run", "before one"])
def test_a_warned_worker_saves_its_run_and_goes_back_to_the_queue(
    search: Search, body: Body, monkeypatch: pytest.MonkeyPatch, during: bool
) -> None:
    asked: list[bool] = []

    def warned(config: RunConfig) -> State:
        threading.Timer(0.06 if during else 0.0, os.kill, (os.getpid(), signal.SIGUSR2)).start()
        time.sleep(0.0 if during else 0.1)
        return fake_runs.slow(config)

    monkeypatch.setattr(worker, "run", warned)
    monkeypatch.setattr(Standing, "asked", classmethod(lambda cls: Standing("RUNNING", 0, False, 100.0)))
    monkeypatch.setattr(slurm_job, "requeue", lambda: asked.append(True) is None)
    with body.signals:
        assert work_at_search(body) == 128 + signal.SIGUSR2
    assert asked == [True]
    if during:
        (trial,) = book_of(search).running()
        state = RunDirectory(body.submission.results, trial.user_attrs["runs"][0]).read_state()
        assert (state.status, state.failure) == (Status.PENDING, Failure.TIMED_OUT)
    else:
        assert (book_of(search).ended, book_of(search).running()) == (1, [])
    monkeypatch.setattr(worker, "run", fake_runs.quick)
    assert work_at_search(Body(body.submission, 0, Signals())) == 0
    assert [trial.state for trial in book_of(search).trials()] == [TrialState.COMPLETE] * 6


def hunt(search: Search, work: Any, **given: Any) -> None:
    assert search.sweep.search is not None
    Hunt(search.sweep.search, search.families, Inline(work), Wishes(), Silent(), **given).run()


def dying(search: Search, images: int) -> None:
    """A process that dies at its first trial, that far into its run."""

    def die(config: RunConfig) -> State:
        directory = RunDirectory.of(config)
        directory.write_state(directory.read_state(), status=Status.RUNNING, attempts=1, images=images)
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        hunt(search, die, deaths=3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_trial_that_takes_one_process_after_another_is_given_up(search: Search) -> None:
    for _ in range(3):
        dying(search, images=8)
    hunt(search, bowl_run, deaths=3)
    first, *others = book_of(search).trials()
    assert (first.state, first.user_attrs[FAILURE]) == (TrialState.FAIL, "killed")
    run = RunDirectory(search.folder.parent, first.user_attrs["runs"][0])
    assert run.read_state().message == "its processes died without a word (3 tries)"
    assert {trial.state for trial in others} == {TrialState.COMPLETE}


def test_a_trial_that_gets_on_is_not(search: Search) -> None:
    for images in (8, 16, 24, 32):
        dying(search, images)
    hunt(search, bowl_run, deaths=3)
    assert {trial.state for trial in book_of(search).trials()} == {TrialState.COMPLETE}


def test_who_has_nothing_left_to_begin_waits_as_long_as_it_is_told_to(search: Search) -> None:
    claim = book_of(search).claim()
    assert claim is not None
    hunt(search, bowl_run, patience=0.3)
    assert [trial.number for trial in book_of(search).running()] == [claim.number]
    claim.release()
    hunt(search, never_again(search, claim.number), patience=0.3)
    assert book_of(search).is_finished


def never_again(search: Search, number: int) -> Any:
    """Work for this trial alone."""
    point = search.families[0][1].points(book_of(search).trials()[number].params)[0]
    return lambda config: bowl_run(config) if config.train == point.config.train else never(config)


@pytest.fixture
def launcher(search: Search, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Without a cluster: what it sends is in the queue."""
    for name in ("check_installed", "check_options"):
        monkeypatch.setattr(slurm, name, lambda *given: None)
    monkeypatch.setattr(slurm, "refusal", lambda flags: "")
    monkeypatch.setattr(slurm, "limits", lambda flags: Limits("c", 10, 10))
    monkeypatch.setattr(slurm, "snapshot", lambda folder: folder / "code")
    monkeypatch.setattr(slurm, "send", lambda config, record: "7")
    monkeypatch.setattr(slurm_known, "look", lambda records: jobs_of(records))
    launcher = search.sweep.launcher
    assert isinstance(launcher, SlurmConfig)
    return Slurm(launcher, search.folder)


def jobs_of(records: Sequence[Submission], state: str = "RUNNING") -> list[Job]:
    return [
        Job("7", index, str(index), state, 0, 0, record.name, "n1", "None")
        for record in records
        for index in range(len(record.tasks))
    ]


def test_a_second_call_sends_what_is_missing(
    search: Search, launcher: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search_on_cluster(search, Wishes(), launcher) == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 workers submitted: job 7"
    assert launcher.awaited() == set()  # no run is in the hands of a worker before it has claimed its trial
    assert search_on_cluster(search, Wishes(), Slurm(launcher.config, search.folder)) == 0
    assert capsys.readouterr().out.splitlines()[0] == "3 workers are queued or running already"

    def one_lost(records: Sequence[Submission]) -> list[Job]:
        return [*jobs_of(records)[:2], *jobs_of(records, "FAILED")[2:3]]

    monkeypatch.setattr(slurm_known, "look", one_lost)
    assert search_on_cluster(search, Wishes(retry=(Failure.KILLED,)), Slurm(launcher.config, search.folder)) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "1 workers submitted: job 7",
        "2 workers are queued or running already",
    ]
    records = open_records(search.folder)
    assert [len(record.tasks) for record in records] == [3, 1]
    assert records[1].retry == ("killed",)
    assert records[0].search == to_yaml(search.sweep)


def test_workers_that_found_no_room_are_said(
    search: Search, launcher: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher.limits = Limits("c", 10, 2)
    assert search_on_cluster(search, Wishes(), launcher) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "2 workers submitted: job 7",
        "1 workers found no room among 2 jobs: call again later",
    ]


def test_who_follows_replaces_lost_workers_until_it_is_no_use(
    search: Search, launcher: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Sequence[Pack]] = []

    def lose(packs: Sequence[Pack], queued: int, *given: object) -> list[Pack]:
        sent.append(packs)
        if len(sent) == 3:  # the second to be replaced get one trial done
            book = book_of(search)
            claim = book.claim()
            assert claim is not None
            book.tell(claim, [1.0])
        return []

    monkeypatch.setattr(launcher, "_send", lose)
    monkeypatch.setattr(launcher, "config", SlurmConfig(pack=2, wait=True))
    monkeypatch.setattr(cluster, "ASK", -1.0)
    monkeypatch.setattr(cluster, "LOOK", 0.0)
    monkeypatch.setattr("study.search.command.answer", lambda folder, plan: "")
    assert search_on_cluster(search, Wishes(), launcher) == 1
    assert [len(packs) for packs in sent] == [3, 3, 3, 3, 3]
    assert "workers went 3 times in a row without ending a trial" in capsys.readouterr().err


def test_workforce_counts_from_the_last_trial_that_ended(search: Search, launcher: Slurm) -> None:
    force = Workforce(search, Wishes(), launcher)
    force.fill_up()
    assert all(force.replace_lost() for _ in range(5))  # none was lost


def test_a_worker_that_was_there_already_does_a_trial_once_more(search: Search, body: Body) -> None:
    """`--retry pruned` finds jobs of an earlier call still at work: the end it wants undone came after they began."""
    config = search.families[0][1].probe().config
    task = Task(config.results, RunDirectory.of(config).identity)
    task.directory.create(config)
    task.directory.write_state(State(), status=Status.FAILED, attempts=1, failure=Failure.PRUNED, message="pruned")
    done: list[str] = []

    def work(config: RunConfig) -> State:
        done.append("again")
        return State(status=Status.DONE)

    listed = Body(replace(body.submission, search=""), 0, Signals())
    told = listed.do(task, work)
    assert told is not None
    assert told.failure is Failure.PRUNED  # of a list, each run has one try
    assert not done
    body.do(task, work)
    assert done == ["again"]
