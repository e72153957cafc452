"""A search by jobs of the cluster, some of which are killed: every trial once, none lost, the numbers of a calm one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from study.results import read_rows
from study.run_directory import RunDirectory
from study.search.storage import JOURNAL, open_journal
from tests.slurm.search_scenario import KILLED, TRIALS, WORKERS

Begun = Callable[[str], Any]


def outcomes(folder: Path) -> list[tuple[object, ...]]:
    """What each trial of a search came to."""
    lines = json.loads((folder / "trials.json").read_text(encoding="utf-8"))
    return [(each["trial"], each["values"], each["runs"], each["state"], each["objectives"]) for each in lines]


@pytest.mark.scenario("searched")
def test_every_trial_is_done_once_whoever_is_killed(begun: Begun) -> None:
    seen = begun("searched")
    results = seen["results"]
    journal = open_journal(results / "sweep" / JOURNAL)
    trials = journal.get_all_trials(journal.get_study_id_from_name("sweep"))
    assert [trial.number for trial in trials] == list(range(TRIALS))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    runs = {path.name for path in (results / "runs").iterdir()}
    assert len(runs) == TRIALS
    assert {run for trial in trials for run in trial.user_attrs["runs"]} == runs
    for trial in trials:
        rows = read_rows(RunDirectory(results, trial.user_attrs["runs"][0]).rows)
        assert [row.value for row in rows if row.metric == "val_loss"] == trial.values
    assert outcomes(results / "sweep") == outcomes(seen["calm"] / "sweep")


@pytest.mark.scenario("searched")
def test_sixteen_workers_of_one_array_are_at_work_at_the_same_time(begun: Begun) -> None:
    """By their leases, and by what SLURM says is running: before and after all were cancelled."""
    seen = begun("searched")
    assert len(seen["at work"]) == 2
    for workers, running in seen["at work"]:
        assert len(set(workers.values())) == WORKERS == 16
        assert running.keys() == workers.keys()
        assert len(set(running.values())) == 1


@pytest.mark.scenario("searched")
def test_a_second_call_sends_the_workers_that_are_missing(begun: Begun) -> None:
    seen = begun("searched")
    assert seen["killed"] == [-9, KILLED, KILLED]  # the follower, slow workers, and quick ones
    assert f"{KILLED} workers submitted: job " in seen["second"]
    assert f"{WORKERS - KILLED} workers are queued or running already" in seen["second"]
    assert seen["last"][0] == 0
    assert "workers" not in seen["last"][1].replace(f"with {WORKERS} workers", "")
    assert f"sweep: {TRIALS} trials: {TRIALS} complete" in seen["last"][1]


@pytest.mark.scenario("searched")
def test_status_and_cancel_know_the_workers(begun: Begun) -> None:
    seen = begun("searched")
    assert seen["status"].count("  worker ") == WORKERS + KILLED
    assert seen["status"].count(" killed: ") == KILLED
    assert seen["warned"].count("restarted 1 times") == 1
    assert seen["cancelled"].count("scancel sweep.") == 2
    assert seen["attempts"] > TRIALS  # runs that lost their worker went on in another
    code, said = seen["followed"]
    assert code == 0, said
    assert f"{TRIALS} of {TRIALS} trials ended" in said
