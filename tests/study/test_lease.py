"""Leases: one holder at a time, the dead and the silent lose theirs, and a holder that lost it is told."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

import study.lease
from study.atomic import write_text
from study.lease import Holder, hold, newest, process_start, take, this_machine
from study.strict import ConfigError


def test_a_held_lease_is_refused_and_a_released_one_is_not(tmp_path: Path) -> None:
    first = take(tmp_path)
    assert first is not None
    with first:
        assert take(tmp_path) is None
        claim = newest(tmp_path)
        assert claim is not None
        assert claim.held
        assert claim.holder.pid == os.getpid()
    second = take(tmp_path)
    assert second is not None
    assert second.path.stem == "000002"


def test_of_many_takers_one_wins(tmp_path: Path) -> None:
    barrier, won = threading.Barrier(16), []

    def try_it() -> None:
        barrier.wait()
        won.append(take(tmp_path) is not None)

    threads = [threading.Thread(target=try_it) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1


def _leave_a_lease(run: Path) -> None:
    take(run)
    os._exit(0)


def test_a_dead_process_of_this_machine_has_no_claim(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_leave_a_lease, args=(tmp_path,))
    process.start()
    process.join()
    claim = newest(tmp_path)
    assert claim is not None
    assert not claim.held
    assert take(tmp_path) is not None


def test_a_reused_process_id_is_not_the_holder() -> None:
    me = os.getpid()
    assert Holder("h", this_machine(), me, process_start(me) or "").is_alive
    assert Holder("h", this_machine(), me, "0").is_alive is False
    assert Holder("h", "another machine", me, "0").is_alive is None


def _lease_of_another_machine(run: Path, silent: float) -> Path:
    (run / "leases").mkdir()
    path = run / "leases" / "000007.json"
    path.write_text(json.dumps(Holder("far", "elsewhere", 1, "0").__dict__), encoding="utf-8")
    os.utime(path, (time.time() - silent, time.time() - silent))
    return path


def test_another_machine_keeps_its_claim_while_it_beats(tmp_path: Path) -> None:
    path = _lease_of_another_machine(tmp_path, silent=study.lease.EXPIRY - 20)
    assert take(tmp_path) is None
    os.utime(path, (0, 0))
    lease = take(tmp_path)
    assert lease is not None
    assert lease.path.stem == "000008"


def test_a_clock_that_is_wrong_takes_no_lease_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are told by the file system's clock, not by ours."""
    _lease_of_another_machine(tmp_path, silent=0)
    ahead = time.time() + 1e6
    monkeypatch.setattr(study.lease.time, "time", lambda: ahead)
    assert take(tmp_path) is None


def test_the_holder_beats_and_hears_that_it_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.lease, "BEAT", 0.01)
    lost = threading.Event()
    lease = take(tmp_path, on_loss=lost.set)
    assert lease is not None
    with lease:
        os.utime(lease.path, (0, 0))
        for _ in range(500):
            if lease.path.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert lease.path.stat().st_mtime > 0
        (lease.path.parent / "000002.json").write_text("{}", encoding="utf-8")
        assert lost.wait(5)


def test_an_answer_lost_on_the_way_is_no_defeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may repeat a link request whose answer was lost, and then report that the file exists: by our own hand."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(study.lease.os, "link", twice)
    assert take(tmp_path) is not None


def test_holding_refuses_what_is_held_and_leaves_no_folder_of_a_run_that_never_was(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "abc"
    with hold(run):
        with pytest.raises(ConfigError, match=f"run abc is being done by process {os.getpid()}"), hold(run):
            raise AssertionError
        (run / "config.yaml").touch()
    assert (run / "config.yaml").exists()
    other = tmp_path / "runs" / "def"
    with pytest.raises(ConfigError, match="no"), hold(other):
        raise ConfigError("no")
    assert not other.exists()


def test_processes_that_the_system_hides_are_judged_by_their_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted with hidepid, /proc shows no process of another user: that is no proof of death."""

    read_text = Path.read_text

    def hidden(path: Path, **how: str) -> str:
        if path == Path("/proc/1/stat"):
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, **how)

    holder = Holder("here", this_machine(), 1, "1")
    monkeypatch.setattr(Path, "read_text", hidden)
    assert holder.is_alive is None
    lease = tmp_path / "leases" / "000001.json"
    lease.parent.mkdir()
    lease.write_bytes(json.dumps(holder.__dict__).encode())
    assert take(tmp_path) is None
    os.utime(lease, (0, 0))
    assert take(tmp_path) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "far", "unheard": 1}'])
def test_a_lease_that_cannot_be_read_counts_until_it_is_silent(text: str, tmp_path: Path) -> None:
    """A power cut can leave an empty file behind."""
    lease = tmp_path / "leases" / "000003.json"
    lease.parent.mkdir()
    lease.write_text(text, encoding="utf-8")
    (lease.parent / "3 copy.json").write_text("", encoding="utf-8")
    assert take(tmp_path) is None
    os.utime(lease, (0, 0))
    after = take(tmp_path)
    assert after is not None
    assert after.path.stem == "000004"


def _run_on_another_machine(run: Path, beat: float, asleep: Event, awake: Connection) -> None:
    """Begins the run, falls silent, and writes once more when it wakes up."""
    study.lease.this_machine = lambda: "another machine"  # type: ignore[assignment]
    study.lease.BEAT = beat
    lease = take(run)
    assert lease is not None
    with lease:
        write_text(run / "state.json", "the zombie's first")
        asleep.set()
        awake.poll(30)
        write_text(run / "state.json", "the zombie's last")
    os._exit(0)


@pytest.mark.parametrize("beat", [0.01, 1000.0], ids=["its heart notices", "its writing notices"])
def test_a_zombie_of_another_machine_writes_nothing_once_its_run_is_taken_over(tmp_path: Path, beat: float) -> None:
    context = multiprocessing.get_context("spawn")
    asleep, (awake, waking) = context.Event(), context.Pipe()  # an event set waits for whom it wakes, dead or not
    zombie = context.Process(target=_run_on_another_machine, args=(tmp_path, beat, asleep, awake), daemon=True)
    zombie.start()
    assert asleep.wait(60)
    assert take(tmp_path) is None
    os.kill(zombie.pid or 0, signal.SIGSTOP)
    os.utime(tmp_path / "leases" / "000001.json", (0, 0))  # it has been silent for long
    lease = take(tmp_path)
    assert lease is not None
    with lease:
        write_text(tmp_path / "state.json", "its successor's")
        os.kill(zombie.pid or 0, signal.SIGCONT)
        waking.send(None)
        zombie.join(30)
    assert zombie.exitcode == study.lease.LOST
    assert (tmp_path / "state.json").read_text(encoding="utf-8") == "its successor's"
    claim = newest(tmp_path)
    assert claim is not None
    assert claim.number == 2
