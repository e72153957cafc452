"""Where a search remembers its trials: a journal in the sweep's folder, or any storage that optuna knows."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError, ProgrammingError

from study.lease import this_machine
from study.strict import ConfigError

JOURNAL = "search.journal"
SCHEMA = 3.0  # seconds for somebody else to have made a database's tables
CHUNK = 65_536  # bytes looked at in one go for the end of the last whole line
GRACE = 30.0  # seconds after which another machine's unchanged lock counts as left behind


def open_storage(folder: Path, url: str) -> BaseStorage:
    """The storage of the search in this folder."""
    return _open_url(url) if url else open_journal(folder / JOURNAL)


def open_journal(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalLock(path)
        backend = JournalFileBackend(str(path), lock_obj=lock)
        lock.acquire()  # mends it
        try:
            _check_last_line(path)
        finally:
            lock.release()
        return JournalStorage(backend)
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror or error}") from error
    except Exception as error:  # optuna does what the lines say, and of damaged ones raises half a dozen kinds
        raise ConfigError(f"{path} is damaged: {next(iter(str(error).splitlines()), 'not a journal')}") from error


def check_reachable(url: str) -> None:
    """Without making the schema: of several that make it at once, a database refuses all but one."""
    with _told(url):
        if url.startswith("redis"):
            get_storage(url)
            return
        engine = create_engine(url)
        engine.connect().close()
        engine.dispose()


def _open_url(url: str) -> BaseStorage:
    with _told(url):
        try:
            return get_storage(url)
        except (IntegrityError, ProgrammingError):  # another sweep's first call was making the schema
            time.sleep(SCHEMA)
            return get_storage(url)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Whatever a database's driver makes of it, in one line."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"search.storage={url!r} needs the database's driver ({error}): pip install "
            "'diffusion-backbone-study[postgresql]' for postgresql+psycopg://..., or leave storage out: a file "
            "in the sweep's folder serves as well, but for hundreds of workers"
        ) from error
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"search.storage={url!r} cannot be reached: {reason}") from error


class JournalLock(JournalFileSymlinkLock):
    """A symbolic link that names the machine, which works on NFS, taken under a file lock of the kernel's.

    A process that is killed leaves its link behind, and optuna's own locks then make everybody wait for
    half a minute. Whoever has the kernel's lock knows that a link of the same machine was left by the dead,
    and that nobody is writing: an unfinished last line is cut off then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._link = path.with_name(path.name + ".lock")
        self._queue = path.with_name(path.name + ".queue")
        self._held = threading.local()

    def acquire(self) -> bool:
        self._held.file = os.open(self._queue, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(self._held.file, fcntl.LOCK_EX)
            self._link_up()
            try:
                _mend(self._path)
            except BaseException:
                self._link.unlink(missing_ok=True)
                raise
        except BaseException:  # a full disk: whoever asks next, this process too, is not to wait for us
            os.close(self._held.file)
            raise
        return True

    def release(self) -> None:
        try:
            self._link.unlink(missing_ok=True)
        finally:
            os.close(self._held.file)  # and with it the kernel's lock

    def _link_up(self) -> None:
        seen, since, pause = "", time.monotonic(), 0.001
        while True:
            try:
                os.symlink(f"{this_machine()} {time.time_ns()}", self._link)
                return
            except FileExistsError:
                now = self._holder()
            if now.rpartition(" ")[0] == this_machine() or (now == seen and time.monotonic() - since > GRACE):
                self._link.unlink(missing_ok=True)
                continue
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _holder(self) -> str:
        with suppress(OSError):
            return os.readlink(self._link)
        return ""


def _check_last_line(path: Path) -> None:
    """Which optuna takes for one that is still being written, however damaged, until the next is there."""
    with path.open("rb") as file:
        last = deque(file, maxlen=1)
    if last and not isinstance(json.loads(last[0]), dict):
        raise ValueError("its last line is no record")


def _mend(path: Path) -> None:
    """Cut off half a line at the end, of a write that a power cut or a full disk ended and nobody was told of:
    the next line would be appended to it, and no line after that be read."""
    with suppress(FileNotFoundError), path.open("rb+") as file:
        end = whole = file.seek(0, os.SEEK_END)
        while whole:
            start = max(0, whole - CHUNK)
            file.seek(start)
            found = file.read(whole - start).rfind(b"\n") + 1
            whole = start + found
            if found:
                break
        if whole < end:
            file.truncate(whole)
