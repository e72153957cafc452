"""Leases: at most one process does a run at a time, over any number of machines and shared file systems.

A lease is one file, `runs/<id>/leases/<n>.json`. Taking the lease is linking file n+1 into place, which
succeeds for one taker only, also on NFS. Files are never removed while the run exists, so the newest
number is the holder's and a former holder that wakes up can tell that it lost. The holder touches its
file; a holder that is known to be dead, or has not touched it for `EXPIRY`, has lost its claim. Should it
wake up after all, it ends before it replaces a file of the run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

from study.atomic import guards
from study.strict import ConfigError

log = logging.getLogger(__name__)

Holding = AbstractContextManager[None]

BEAT = 10.0  # seconds between signs of life
EXPIRY = 90.0  # seconds of silence after which a holder on another machine counts as dead
LOST = 75  # exit code of a process whose lease was taken over (EX_TEMPFAIL)


@dataclass(frozen=True)
class Holder:
    """Who took a lease; `job` tells apart restarts of one scheduled job."""

    host: str
    machine: str  # differs after a reboot and between containers: process ids only mean something within
    pid: int
    started: str  # start time of the process, for ids are used again
    job: str = ""
    taken: float = 0.0  # seconds since 1970
    released: float = 0.0  # 0: not yet

    def __post_init__(self) -> None:
        texts, numbers = (self.host, self.machine, self.started, self.job), (self.pid, self.taken, self.released)
        if not (all(isinstance(text, str) for text in texts) and all(type(n) in (int, float) for n in numbers)):
            raise ValueError(f"not a holder of a lease: {self}")

    @property
    def is_alive(self) -> bool | None:
        """Whether the process lives; None if it cannot be known from here."""
        if self.machine != this_machine():
            return None
        try:
            return process_start(self.pid) == self.started
        except PermissionError:  # a /proc that hides other people's processes
            return None


NOBODY = Holder("an unknown host", "", 0, "")
"""In a lease whose text was lost, to a power cut say: it still counts until it has been silent for long."""


@dataclass(frozen=True)
class Claim:
    """The newest lease of a run, as read from its file."""

    number: int
    holder: Holder
    age: float  # seconds since the last sign of life, by the file system's own clock

    @property
    def held(self) -> bool:
        if self.holder.released:
            return False
        alive = self.holder.is_alive
        return self.age < EXPIRY if alive is None else alive


class Lease:
    """A lease that this process holds; a context manager that gives it back."""

    def __init__(self, path: Path, holder: Holder, on_loss: Callable[[], object]) -> None:
        self.path, self.holder = path, holder
        self._next = _file(path.parent, int(path.stem) + 1)
        self._on_loss = on_loss
        self._done = threading.Event()
        self._dropped = False
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        guards[self.path.parent.parent.absolute()] = self.check
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._heart.join()
        guards.pop(self.path.parent.parent.absolute(), None)
        if self._dropped or self.lost:
            return
        released = Holder(**{**asdict(self.holder), "released": time.time()})
        try:
            _write_aside(self.path.parent, released).replace(self.path)
        except OSError as failure:  # a full disk, or the run's folder is gone: our death will say it too
            log.warning("the lease %s could not be released: %s", self.path, failure.strerror)

    @property
    def lost(self) -> bool:
        return self._next.exists()

    def drop_run(self) -> None:
        """Remove the run in one step, while it is ours: whoever comes next finds no folder, or one with a lease."""
        run = self.path.parent.parent
        aside = run.with_name(f".{run.name}.{uuid.uuid4().hex}.tmp")  # containers share process ids
        run.rename(aside)
        self._dropped = True
        shutil.rmtree(aside, ignore_errors=True)

    def check(self) -> None:
        """Asked before every file that is replaced: after a long sleep the heart may not have looked yet."""
        if self.lost:
            self._on_loss()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            if self.lost:
                self._on_loss()
                return
            try:
                os.utime(self.path)
            except OSError as error:
                log.warning("the lease %s could not be renewed: %s", self.path, error.strerror)


def leave_at_once() -> None:
    """Not another byte may be written by a process that no longer owns its run."""
    log.error("another process took this run over: leaving it to that one")
    os._exit(LOST)


def take(run: Path, on_loss: Callable[[], object] = leave_at_once) -> Lease | None:
    """The lease of the run in this folder, or None if somebody has it."""
    folder = run / "leases"
    folder.mkdir(parents=True, exist_ok=True)
    claim = newest(run)
    holder = _this_process()
    if claim is not None and claim.held and not is_restart(holder.job, claim.holder.job):
        return None
    target = _file(folder, claim.number + 1 if claim else 1)
    temporary = _write_aside(folder, holder)
    try:
        os.link(temporary, target)
    except FileExistsError:
        if temporary.stat().st_nlink < 2:  # two names: linked after all, by a request whose answer was lost
            return None
    finally:
        temporary.unlink(missing_ok=True)
    return Lease(target, holder, on_loss)


@contextmanager
def hold(run: Path) -> Iterator[None]:
    """The lease for as long as the block lasts; refused if somebody has it."""
    lease = take(run)
    if lease is None:
        claim = newest(run)
        who = f"process {claim.holder.pid} on {claim.holder.host}" if claim else "another process"
        raise ConfigError(f"run {run.name} is being done by {who}: python -m study.status {run.name}")
    with lease:
        try:
            yield
        finally:
            if not (run / "config.yaml").exists():  # refused before it became a run
                lease.drop_run()


def already_held(run: Path) -> Holding:
    """In place of `hold` for a caller that has the lease."""
    return nullcontext()


def newest(run: Path) -> Claim | None:
    """The last lease that was taken of a run."""
    folder = run / "leases"
    try:
        found = [match for name in os.listdir(folder) if (match := re.fullmatch(r"(\d{6,})\.json", name))]
        numbers = [int(match[1]) for match in found]
        return _read(folder, max(numbers)) if numbers else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(folder: Path, number: int) -> Claim:
    """Opening the file, unlike asking for its times, makes NFS fetch them anew."""
    with _file(folder, number).open(encoding="utf-8") as file:
        touched = os.fstat(file.fileno()).st_mtime
        try:
            holder = Holder(**json.load(file))
        except (ValueError, TypeError):
            holder = NOBODY
    age = 0.0 if holder.released or holder.is_alive is not None else _file_system_time(folder) - touched
    return Claim(number, holder, age)


def _file_system_time(folder: Path) -> float:
    """Now, by the clock that stamps the files there: ours may be off by more than a lease's life."""
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _write_aside(folder: Path, holder: Holder) -> Path:
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    temporary.write_text(json.dumps(asdict(holder)), encoding="utf-8")
    temporary.chmod(folder.stat().st_mode & 0o666)
    return temporary


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def _this_process() -> Holder:
    pid = os.getpid()
    return Holder(platform.node(), this_machine(), pid, process_start(pid) or "", _job(), time.time())


def is_restart(job: str, other: str) -> bool:
    """Whether a job is a later start of the other one: the scheduler has given that up, though it may still live."""
    number, _, restart = job.partition(".")
    its_number, _, its_restart = other.partition(".")
    return bool(number) and number == its_number and int(restart) > int(its_restart)


def _job() -> str:
    """SLURM's job and how often it was restarted; empty elsewhere."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}" if job else ""


@cache
def this_machine() -> str:
    """One boot of one machine and, within it, one space of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def process_start(pid: int) -> str | None:
    """When a process of this machine started, as an opaque text; None if there is none, or only its remains.

    PermissionError: there is one, and this system does not show it to us.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return _start_without_proc(pid)
    except ProcessLookupError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]


def _start_without_proc(pid: int) -> str | None:
    """Where there is no /proc, or one that hides the processes of others."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        if Path("/proc/self").exists():
            raise
    return ""
