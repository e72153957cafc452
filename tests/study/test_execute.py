"""Carrying out a plan: no run is lost between two processes, and a store that refuses a file ends no other run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

import study.execute
import study.launch.local
import study.launch.server
import study.launch.work
from study.config import RunConfig
from study.execute import Execution, Wishes, _remove, archive
from study.launch.config import LocalConfig
from study.launch.inline import Inline
from study.launch.local import UNTOLD, LocalPool, autopsy
from study.launch.work import Outcome, Task, give_up, perform, record_death
from study.lease import Lease, take
from study.plan import Plan, make_plan
from study.run_directory import Failure, RunDirectory, State, Status
from study.strict import ConfigError
from study.sweep import main
from study.sweep_file import read_sweep
from study.watch import Watch
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file

SMALL = SWEEP.replace("[0.001, 0.002]", "[0.001]").replace("[0, 1, 2, 3, 4, 5]", "[0, 1, 2]")


def plan_of(folder: Path, text: str = SMALL) -> Plan:
    return make_plan(read_sweep(sweep_file(folder, text), [f"results={folder / 'results'}"]))


class Stumbling:
    """Loses the second task's process once, while somebody else has the first."""

    def __init__(self, lease_ends: Callable[[], None]) -> None:
        self._inline, self._lease_ends, self.rounds = Inline(fake_runs.quick), lease_ends, 0

    def launch(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        self.rounds += 1
        for number, task in enumerate(tasks):
            if self.rounds == 1 and number == 1:
                yield record_death(task, Failure.KILLED, "killed")
            else:
                yield from self._inline.launch([task], should_stop)
        self._lease_ends()

    def active(self) -> list[Task]:
        return []


def test_a_run_that_somebody_else_has_is_not_forgotten_when_another_must_be_repeated(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    lease = take(plan.points[0].directory.path)
    assert lease is not None
    lease.__enter__()
    launcher = Stumbling(lambda: lease.__exit__(None, None, None) if not lease._done.is_set() else None)
    Execution(plan, launcher, Wishes(), Watch(plan, 3)).run(list(plan.points))
    assert [point.directory.read_state().status for point in plan.points] == [Status.DONE] * 3


def test_waiting_ends_with_the_first_run_that_is_left_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One holder stays; what the other leaves is taken up meanwhile, and then the first is waited for again."""
    monkeypatch.setattr(study.execute, "POLL", 0.01)
    plan = plan_of(tmp_path)
    stays, goes = take(plan.points[0].directory.path), take(plan.points[1].directory.path)
    assert stays is not None
    assert goes is not None
    third = plan.points[1].directory

    def others() -> None:
        with stays:
            with goes:
                pass
            while third.read_state().status is not Status.DONE:
                if stop.wait(0.01):
                    return

    stop = threading.Event()
    thread = threading.Thread(target=others)
    thread.start()
    Execution(plan, Inline(fake_runs.quick), Wishes(), Watch(plan, 3)).run(list(plan.points))
    stop.set()
    thread.join()
    assert [point.directory.read_state().status for point in plan.points] == [Status.DONE] * 3


@pytest.mark.parametrize("where", ["lease", "state"])
def test_a_store_that_refuses_a_file_fails_that_run_alone(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(28, "No space left on device", "/store")
    unlucky = plan_of(tmp_path).points[1].run

    def refusing(run: Path) -> Lease | None:
        if run.name == unlucky:
            raise full
        return take(run)

    def refused_work(config: RunConfig) -> State:
        if RunDirectory.of(config).identity == unlucky:
            monkeypatch.setattr(RunDirectory, "write_state", lambda *given, **changes: (_ for _ in ()).throw(full))
            raise full
        monkeypatch.undo()
        return fake_runs.quick(config)

    if where == "lease":
        monkeypatch.setattr(study.launch.work, "take", refusing)
    file = sweep_file(tmp_path, SMALL)
    work = fake_runs.quick if where == "lease" else refused_work
    assert main([str(file), f"results={tmp_path / 'results'}", "launcher=inline"], work) == 1
    err = capsys.readouterr().err
    assert f"{unlucky}  storage: No space left on device (/store)" in err
    assert "1 of 3 runs are not done" in err
    assert "Traceback" not in err
    monkeypatch.undo()
    assert main([str(file), f"results={tmp_path / 'results'}", "launcher=inline"], fake_runs.quick) == 0


def test_a_death_that_cannot_be_recorded_is_still_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way", encoding="utf-8")
    task = Task(str(tmp_path), "abc")
    for end in (
        perform(task, fake_runs.quick).state,
        record_death(task, Failure.KILLED, "killed").state,
        give_up(task, State(message="killed"), 3),
    ):
        assert end is not None
        assert (end.status, end.failure) == (Status.FAILED, Failure.STORAGE)
        assert "Not a directory" in (end.message or "")


def test_a_process_that_took_others_down_with_it_is_no_bug_of_the_run() -> None:
    class Ended:
        exitcode = UNTOLD

    assert autopsy(Ended(), out_of_memory=False)[0] is Failure.KILLED  # type: ignore[arg-type]


def test_force_sets_all_attempts_aside_or_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    Execution(plan, Inline(fake_runs.quick), Wishes(), Watch(plan, 3)).run(list(plan.points))
    lease = take(plan.points[2].directory.path)
    assert lease is not None
    with lease, pytest.raises(ConfigError, match="is being done by process"):
        archive(plan.points)
    assert all(point.directory.read_state().status is Status.DONE for point in plan.points)


def test_an_interrupted_setting_aside_never_leaves_a_run_done_without_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    point, rename, renames = plan.points[0], Path.rename, 0

    def dying(path: Path, target: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames > moves:
            raise OSError(5, "killed", str(path))
        return rename(path, target)

    for moves in range(4):
        Execution(plan, Inline(fake_runs.quick), Wishes(), Watch(plan, 3)).run([point])
        point.directory.checkpoints.mkdir(exist_ok=True)
        renames = 0
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", dying)
            with pytest.raises(ConfigError, match="cannot be set aside: killed"):
                archive([point])
        done = point.directory.read_state().status is Status.DONE
        assert done == (moves < 2)
        assert point.directory.rows.exists() if done else not point.directory.checkpoints.exists()


def test_attempts_set_aside_never_share_a_folder(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    point = plan.points[0]
    for _ in range(3):
        Execution(plan, Inline(fake_runs.quick), Wishes(), Watch(plan, 3)).run([point])
        archive([point])
    (point.directory.path / "old-1" / "log.txt").unlink()
    for path in (point.directory.path / "old-1").iterdir():
        path.unlink()
    (point.directory.path / "old-1").rmdir()  # by hand
    Execution(plan, Inline(fake_runs.quick), Wishes(), Watch(plan, 3)).run([point])
    archive([point])
    assert sorted(path.name for path in point.directory.path.glob("old-*")) == ["old-2", "old-3", "old-4"]


def test_other_workers_are_no_other_plan(tmp_path: Path) -> None:
    for words in (["launcher=inline"], ["launcher=local", "launcher.workers=1", "launcher.tries=7"]):
        assert main([str(sweep_file(tmp_path, SMALL)), f"results={tmp_path / 'r'}", *words], fake_runs.quick) == 0
    assert not list((tmp_path / "r" / "lrs").glob("plan-*"))


def test_a_failed_beginning_leaves_a_run_that_somebody_has_begun(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    directory = plan.points[0].directory
    lease = take(directory.path)
    directory.config.write_text("x: 1\n", encoding="utf-8")
    assert lease is not None
    _remove(directory.path)
    assert directory.config.exists()


@pytest.mark.parametrize(
    ("visible", "count", "workers", "expected"),
    [
        (None, 0, 3, [None, None, None]),
        (None, 2, 0, ["0", "1"]),
        ("3, GPU-8f2e", 2, 0, ["3", "GPU-8f2e"]),
        ("", 0, 1, [None]),
        (None, 2, 3, ["0", "1", "0"]),
    ],
)
def test_every_slot_has_its_gpu(
    visible: str | None, count: int, workers: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = LocalPool(LocalConfig(workers=workers), fake_runs.quick)
    assert [slot.device for slot in pool.slots] == expected


def test_a_worker_sees_the_gpu_of_its_slot_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of two faked GPUs, one run at a time on each: what each run saw is in its log."""
    monkeypatch.setattr(study.launch.local, "visible_gpus", lambda: ["5", "7"])
    file = sweep_file(tmp_path, SMALL.replace("workers: 2", "workers: 0"))
    assert main([str(file), f"results={tmp_path / 'r'}"], fake_runs.telling_its_gpu) == 0
    seen = [path.read_text(encoding="utf-8") for path in (tmp_path / "r").glob("runs/*/log.txt")]
    assert len(seen) == 3
    assert set(seen) == {"5", "7"}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_workers_that_cannot_start_end_the_sweep_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installation that is broken since: no run is to blame, and none is tried a hundred times."""
    monkeypatch.setattr(study.launch.local, "begin", fake_runs.dying_at_once)
    file = sweep_file(tmp_path, SMALL)
    assert main([str(file), f"results={tmp_path / 'r'}"], fake_runs.quick) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: worker processes die as they start, 3 in a row")
    monkeypatch.undo()
    assert main([str(file), f"results={tmp_path / 'r'}", "launcher=inline"], fake_runs.quick) == 0


def test_workers_that_cannot_start_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # one that another test began speaks elsewhere
    monkeypatch.setattr(study.launch.server, "PRELOADED", ["study.launch.worker"])
    monkeypatch.setattr(study.launch.local, "begin", fake_runs.broken_at_once)
    file = sweep_file(tmp_path, SMALL)
    assert main([str(file), f"results={tmp_path / 'r'}"], fake_runs.quick) == 2
    err = capsys.readouterr().err
    cause = "ImportError: cannot import name 'half' from 'written'"
    assert err.splitlines()[-1] == f"error: worker processes die as they start, 3 in a row: {cause}"
    assert "Exception in initializer" in err  # in full above
    messages = [path.read_text(encoding="utf-8") for path in (tmp_path / "r").glob("runs/*/state.json")]
    assert any(f"died as it started; last on stderr: {cause}" in message for message in messages)
