"""Many processes at one journal, killed at random moments: every trial once, none lost."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

from optuna.trial import TrialState

from study.search.storage import JOURNAL, JournalLock, open_journal
from study.sweep import main
from tests.study import fake_runs
from tests.study.search.killed_search import start, wait_for
from tests.study.sweeping import all_rows, assert_store_whole, finish, kill, sweep_file, wait_until_busy
from tests.study.sweeping import start as start_sweep

SWEEP = """\
# Which learning rate?
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 64}
axes: {train.lr: "loguniform(1e-4, 1e-1)"}
search: {trials: 60, sampler: random}
launcher: {name: local, workers: 2, tries: 50}
"""
WORKERS = 16
KILLS = 25


def assert_each_once(results: Path, trials: int) -> None:
    journal = open_journal(results / "lrs" / JOURNAL)
    found = journal.get_all_trials(journal.get_study_id_from_name("lrs"))
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    rows = all_rows(results)
    assert len(rows) == trials  # a run per trial: none was begun for a trial that was forgotten
    values = sorted(row.value for own in rows.values() for row in own if row.metric == "val_loss")
    assert values == sorted(trial.values[0] for trial in found)
    assert_store_whole(results)


def test_sixteen_processes_share_one_journal_while_some_are_killed(tmp_path: Path) -> None:
    file, results, chance = sweep_file(tmp_path, SWEEP), tmp_path / "r", random.Random(0)
    processes = [start(file, results) for _ in range(WORKERS)]
    for _ in range(KILLS):
        time.sleep(chance.uniform(0, 0.2))
        index = chance.randrange(WORKERS)
        pid = processes[index].pid
        assert pid is not None
        if processes[index].exitcode is None:
            kill(pid)
        processes[index].join()
        processes[index] = start(file, results)
    assert wait_for(processes, 120)
    assert [process.exitcode for process in processes] == [0] * WORKERS
    assert_each_once(results, 60)


def test_the_pools_owner_killed_and_called_again_ends_as_if_undisturbed(tmp_path: Path) -> None:
    text, chance = SWEEP.replace("trials: 60", "trials: 16"), random.Random(1)
    file, results = sweep_file(tmp_path, text), tmp_path / "r"
    for _ in range(3):
        process = start_sweep("slow", str(file), f"results={results}")
        if wait_until_busy(process, results):
            time.sleep(chance.uniform(0.1, 0.5))
            kill(process.pid)
        finish(process)
    status, _, errors = finish(start_sweep("slow", str(file), f"results={results}"))
    assert status == 0, errors
    assert_each_once(results, 16)
    calm = tmp_path / "calm"
    assert main([str(file), f"results={calm}", "launcher=inline"], fake_runs.quick) == 0
    told = [json.loads((folder / "lrs" / "trials.json").read_text(encoding="utf-8")) for folder in (results, calm)]
    assert told[0] == told[1]


def test_a_lock_left_by_the_dead_is_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    pid = os.fork()
    if pid == 0:
        JournalLock(path).acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / f"{JOURNAL}.lock").is_symlink()
    lock = JournalLock(path)
    assert lock.acquire()
    lock.release()
    assert not (tmp_path / f"{JOURNAL}.lock").is_symlink()
