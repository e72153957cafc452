"""The journal's lock and its last line, when the disk is full in the middle of either."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend

from study.search.storage import CHUNK, JOURNAL, JournalLock


def is_free(path: Path) -> bool:
    """For another process, which would wait for ever."""
    pid = os.fork()
    if pid == 0:
        import signal

        signal.alarm(5)
        lock = JournalLock(path)
        lock.acquire()
        lock.release()
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_lock_that_could_not_be_taken_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = JournalLock(tmp_path / JOURNAL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        with pytest.raises(OSError, match="No space left"):
            lock.acquire()
    assert is_free(tmp_path / JOURNAL)
    with monkeypatch.context() as patch:
        patch.setattr("study.search.storage._mend", full)
        with pytest.raises(OSError, match="No space left"):
            lock.acquire()
    assert not (tmp_path / f"{JOURNAL}.lock").is_symlink()
    assert is_free(tmp_path / JOURNAL)


@pytest.mark.parametrize("half", [b'{"op_code": 6, "wor', b"x" * (2 * CHUNK + 1)], ids=["short", "long"])
@pytest.mark.parametrize("whole", [0, 2], ids=["empty", "begun"])
def test_what_is_written_after_half_a_line_is_read(tmp_path: Path, half: bytes, whole: int) -> None:
    path = tmp_path / JOURNAL
    journal = JournalFileBackend(str(path), lock_obj=JournalLock(path))
    lines = [{"line": number} for number in range(whole)]
    if lines:
        journal.append_logs(lines)
    assert list(journal.read_logs(0)) == lines
    with path.open("ab") as file:
        file.write(half)
    assert list(journal.read_logs(0)) == lines
    journal.append_logs([{"line": "next"}])
    assert list(journal.read_logs(0)) == [*lines, {"line": "next"}]
    other = JournalFileBackend(str(path), lock_obj=JournalLock(path))
    assert list(other.read_logs(0)) == [*lines, {"line": "next"}]
