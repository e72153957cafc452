"""Runs that die, crash, diverge or fail: each costs one attempt of one run, is classed, and the sweep goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.run_directory import RunDirectory, State
from study.status import main as status_main
from study.sweep import main
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, all_rows, assert_store_whole, finish, start, sweep_file

TEXT = SWEEP.replace("[0.001, 0.002]", "[0.001]").replace("tries: 50", "tries: 2")
AGAIN = "the same command with --retry"


def states(results: Path) -> dict[int, State]:
    """By seed."""
    found = {}
    for path in results.glob("runs/*"):
        text = (path / "config.yaml").read_text(encoding="utf-8")
        seed = int(next(line for line in text.splitlines() if line.startswith("seed:")).split()[1])
        found[seed] = RunDirectory(results, path.name).read_state()
    return found


def test_every_death_has_its_class_and_retry_brings_runs_back(tmp_path: Path) -> None:
    file, results = sweep_file(tmp_path, TEXT), tmp_path / "results"
    status, out, err = finish(start("failing", str(file), f"results={results}"))
    assert status == 1
    ends = {seed: (state.status, state.failure, state.attempts) for seed, state in states(results).items()}
    assert ends == {
        0: ("done", None, 1),
        1: ("done", None, 2),  # killed once, continued
        2: ("failed", "bug", 1),
        3: ("failed", "bug", 1),
        4: ("failed", "diverged", 1),
        5: ("failed", "killed", 2),
    }
    assert "crashed (SIGSEGV)" in (states(results)[2].message or "")
    assert "killed (SIGKILL) (2 tries)" in (states(results)[5].message or "")
    assert "missing: lr=0.001 seed=4: diverged" in out
    assert err.splitlines()[-1] == f"4 of 6 runs failed; {AGAIN} bug,diverged,killed redoes them"
    assert "the same command continues" not in err
    assert main([str(file), f"results={results}", "launcher=inline"], fake_runs.quick) == 1  # failures stay
    assert len(all_rows(results)) == 2
    arguments = [str(file), f"results={results}", "launcher=inline", "--retry=diverged,killed"]
    assert main(arguments, fake_runs.quick) == 1
    assert len(all_rows(results)) == 4
    assert main([str(file), f"results={results}", "launcher=inline", "--retry=failed"], fake_runs.quick) == 0
    assert_store_whole(results)


def test_the_same_command_continues_what_a_full_disk_ended_once_a_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs whose seed is 3 have a bug, and no disk helps them."""
    file, results = sweep_file(tmp_path, TEXT.replace("tries: 2", "tries: 50")), tmp_path / "results"
    command = [str(file), f"results={results}", "launcher=inline"]
    for attempt in (1, 2):
        assert main(command, fake_runs.on_a_full_disk) == 1
        assert capsys.readouterr().err.splitlines()[-2:] == [
            "5 of 6 runs are not done; the same command continues",
            f"1 of 6 runs failed; {AGAIN} bug redoes them",
        ]
        assert {seed: state.attempts for seed, state in states(results).items()} == {
            seed: 1 if seed == 3 else attempt for seed in range(6)
        }
    assert status_main(["lrs", "--results", str(results)]) == 0
    assert "storage: No space left on device  (attempt 2); the sweep continues it" in capsys.readouterr().out
    assert main([*command, "--plan"], fake_runs.quick) == 0
    assert "6 runs: 5 to continue, 1 failed" in capsys.readouterr().out
    assert main(command, fake_runs.quick) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"1 of 6 runs failed; {AGAIN} bug redoes them"
    assert main([*command, "--retry=bug"], fake_runs.quick) == 0
    assert {state.status for state in states(results).values()} == {"done"}
    assert_store_whole(results)


def test_max_failures_stops_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace("[0, 1, 2, 3, 4, 5]", "[3, 4, 13, 14]")
    for words, left in (("--fail-fast",), 3), (("--max-failures=2",), 2), ((), 0):
        results = tmp_path / f"results{left}"
        assert (
            main([str(sweep_file(tmp_path, text)), f"results={results}", "launcher=inline", *words], fake_runs.failing)
            == 1
        )
        assert sum(state.status == "pending" for state in states(results).values()) == left


def test_force_keeps_the_old_attempt(tmp_path: Path) -> None:
    text = TEXT.replace("[0, 1, 2, 3, 4, 5]", "[0]")
    arguments = [str(sweep_file(tmp_path, text)), f"results={tmp_path / 'results'}", "launcher=inline"]
    assert main(arguments, fake_runs.quick) == 0
    assert main([*arguments, "--force"], fake_runs.quick) == 0
    (run,) = (tmp_path / "results" / "runs").iterdir()
    assert (run / "old-1" / "rows.jsonl").read_bytes() == (run / "rows.jsonl").read_bytes()
    assert RunDirectory(tmp_path / "results", run.name).read_state().attempts == 1


def test_a_changed_sweep_of_the_same_name_keeps_the_plan_before_it(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for seeds in ("[0]", "[0, 1]", "[0, 1]"):
        text = TEXT.replace("[0, 1, 2, 3, 4, 5]", seeds)
        assert main([str(sweep_file(tmp_path, text)), f"results={results}", "launcher=inline"], fake_runs.quick) == 0
    assert sorted(path.name for path in (results / "lrs").glob("plan*")) == ["plan-1.json", "plan.json"]
    assert {state.attempts for state in states(results).values()} == {1}


def test_a_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep_file(tmp_path)), f"results={tmp_path / 'results'}", "--plan"], fake_runs.quick) == 0
    assert not (tmp_path / "results").exists()
    out = capsys.readouterr().out
    assert "12 runs: 12 new" in out
    assert "no run is recorded on this machine yet" in out
