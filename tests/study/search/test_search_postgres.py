"""Several processes at one search in a database, whose schema one of them makes before the others begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from study.search.storage import JOURNAL, open_storage
from study.sweep import main
from tests.study import fake_runs
from tests.study.search import postgres
from tests.study.search.killed_search import start, wait_for
from tests.study.search.test_search_kills import SWEEP
from tests.study.sweeping import all_rows, assert_store_whole, kill, sweep_file

WORKERS = 4
TRIALS = 16


@pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "there is one")
def test_four_workers_share_a_database_while_one_is_killed(tmp_path: Path) -> None:
    with postgres.server() as url:
        text = SWEEP.replace("trials: 60", f"trials: {TRIALS}, storage: '{url}'")
        file, results = sweep_file(tmp_path, text), tmp_path / "r"
        processes = [start(file, results) for _ in range(WORKERS)]
        processes[0].join(1.0)
        assert processes[0].pid is not None
        kill(processes[0].pid)
        processes[0].join()
        processes[0] = start(file, results)
        assert wait_for(processes, 120)
        assert [process.exitcode for process in processes] == [0] * WORKERS
        storage = open_storage(results / "lrs", url)
        trials = storage.get_all_trials(storage.get_study_id_from_name("lrs"))
        assert [trial.number for trial in trials] == list(range(TRIALS))
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        rows = all_rows(results)
        assert len(rows) == TRIALS
        values = sorted(row.value for own in rows.values() for row in own if row.metric == "val_loss")
        assert values == sorted(trial.values[0] for trial in trials)
        assert_store_whole(results)
        assert not (results / "lrs" / JOURNAL).exists()
        assert main([str(file), f"results={results}", "launcher=inline"], fake_runs.quick) == 0
        storage.remove_session()
