"""A sweep under SIGKILL, and two sweeps at once: the store ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

from study.sweep import main
from tests.study import fake_runs
from tests.study.sweeping import (
    SWEEP,
    Forked,
    all_rows,
    assert_store_whole,
    busy_workers,
    finish,
    kill,
    start,
    sweep_file,
    wait_until_busy,
)

KILLS = 20
ROUNDS = 50


def test_twenty_kills_leave_the_rows_of_an_undisturbed_sweep(tmp_path: Path) -> None:
    """Parents, workers and both, at random moments; what the parent left behind goes away by itself."""
    file = sweep_file(tmp_path)
    assert main([str(file), f"results={tmp_path / 'calm'}", "launcher=inline"], fake_runs.quick) == 0
    stormy, chance, kills, launches = tmp_path / "stormy", random.Random(0), 0, 0
    while kills < KILLS:
        process = Forked(fake_runs.slow, tmp_path, str(file), f"results={stormy}")
        launches += 1
        for target in ["worker"] * 4 + ["parent" if launches % 2 else "both"]:
            if not wait_until_busy(process, stormy):
                break
            time.sleep(chance.uniform(0, 0.15))
            workers = busy_workers(stormy)
            if target in ("parent", "both"):
                kill(process.pid)
            for pid in workers if target != "parent" else []:
                kill(pid)
            kills += 1
            time.sleep(0.02)
        process.finish()
    status, errors = Forked(fake_runs.slow, tmp_path, str(file), f"results={stormy}").finish()
    assert status == 0, errors
    assert len(all_rows(stormy)) == 12
    assert all_rows(stormy) == all_rows(tmp_path / "calm")
    assert_store_whole(stormy)


def test_a_parent_killed_leaves_no_worker_behind_and_ctrl_c_can_be_resumed(tmp_path: Path) -> None:
    file, results = sweep_file(tmp_path), tmp_path / "results"
    process = Forked(fake_runs.slow, tmp_path, str(file), f"results={results}")
    assert wait_until_busy(process, results)
    workers = busy_workers(results)
    kill(process.pid)
    process.finish()
    for _ in range(200):
        if not any(os.path.exists(f"/proc/{pid}") for pid in workers):
            break
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    process = Forked(fake_runs.slow, tmp_path, str(file), f"results={results}")
    assert wait_until_busy(process, results)
    os.kill(process.pid, signal.SIGINT)
    status, errors = process.finish()
    assert status == 130
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    assert not busy_workers(results)
    assert main([str(file), f"results={results}", "launcher=inline"], fake_runs.quick) == 0
    assert_store_whole(results)


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    file, results = sweep_file(tmp_path), tmp_path / "results"
    process = start("stubborn", str(file), f"results={results}")
    assert wait_until_busy(process, results)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    status, _, errors = finish(process, timeout=30)
    assert status == 130
    assert "Traceback" not in errors
    assert main([str(file), f"results={results}", "launcher=inline"], fake_runs.quick) == 0
    assert len(all_rows(results)) == 12


def test_fifty_rounds_of_two_sweeps_at_once_on_one_store(tmp_path: Path) -> None:
    """Overlapping points: every run is done once, whoever does it."""
    first = SWEEP.replace("[0.001, 0.002]", "[0.001]")
    second = first.replace("[0, 1, 2, 3, 4, 5]", "[3, 4, 5, 6]")
    files = [sweep_file(tmp_path, first, "first"), sweep_file(tmp_path, second, "second")]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study.execute", "tests.study.fake_runs"])
    barrier = context.Barrier(2)
    processes = [context.Process(target=_rounds, args=(file, tmp_path, barrier)) for file in files]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    for number in range(ROUNDS):
        results = tmp_path / f"store-{number}"
        assert_store_whole(results)
        assert len(all_rows(results)) == 7
        assert len(list(results.glob("runs/*/finished"))) == 7


def _rounds(file: Path, folder: Path, barrier: object) -> None:
    """One of the two: plans once, then carries out the plan on store after store."""
    from dataclasses import replace

    import study.execute
    from study.execute import Execution, Wishes, wanted
    from study.launch.inline import Inline
    from study.plan import Plan, make_plan
    from study.sweep_file import read_sweep
    from study.watch import Watch

    study.execute.POLL = 0.01
    plan = make_plan(read_sweep(file))
    for number in range(ROUNDS):
        results = str(folder / f"store-{number}")
        points = tuple(replace(point, config=replace(point.config, results=results)) for point in plan.points)
        here = Plan(plan.sweep, points)
        barrier.wait(60)  # type: ignore[attr-defined]
        Execution(here, Inline(fake_runs.quick), Wishes(), Watch(here, len(points))).run(wanted(here, Wishes()))
