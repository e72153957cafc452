"""The local pool: single-process executors side by side, so that one that dies takes nobody with it."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from study.launch.config import LocalConfig
from study.launch.server import VOICES, server
from study.launch.work import Outcome, Task, Work, record_death
from study.launch.worker import RESEND, begin, do
from study.lease import LOST
from study.run_directory import Failure
from study.strict import ConfigError

STARTS = 3  # deaths of a worker as it starts, in a row, after which it is not the runs' fault
UNTOLD = 255  # exit code of a process whose end the fork server could not report, for it had died itself


class WorkerError(ConfigError):
    """No worker process can be had on this machine as it is."""


class LocalPool:
    """Runs tasks on this machine, one per slot; a slot is a GPU, or a few CPUs."""

    def __init__(self, config: LocalConfig, work: Work) -> None:
        devices = visible_gpus()
        workers = config.workers or len(devices) or max(1, usable_cpus() // config.threads)
        self.slots = [
            Slot(work, config.threads, devices[index % len(devices)] if devices else None) for index in range(workers)
        ]
        self._stopping = False
        self._taking = threading.Lock()
        self._ended: queue.Queue[Outcome | BaseException | None] = queue.Queue()

    def launch(self, tasks: Iterable[Task], should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        """How each task ended, as it ends. Tasks are drawn one by one as slots fall free."""
        source = iter(tasks)
        self._stopping = False
        threads = [threading.Thread(target=self._serve, args=(slot, source), daemon=True) for slot in self.slots]
        for thread in threads:
            thread.start()
        try:
            yield from self._outcomes(len(threads), should_stop)
        finally:  # an error, or a second Ctrl-C: nothing to wait for
            self._stopping = True
            for slot in self.slots:
                slot.signal(signal.SIGKILL)

    def active(self) -> list[Task]:
        return [slot.task for slot in self.slots if slot.task is not None]

    def _outcomes(self, serving: int, should_stop: Callable[[], bool]) -> Iterator[Outcome]:
        while serving:
            try:
                ended = self._ended.get(timeout=RESEND)
            except queue.Empty:
                ended = ()  # type: ignore[assignment]
            if should_stop():
                self._stopping = True
                for slot in self.slots:
                    slot.signal(signal.SIGINT)
            if isinstance(ended, Outcome):
                yield ended
            elif isinstance(ended, BaseException):
                raise ended
            serving -= ended is None

    def _serve(self, slot: Slot, source: Iterator[Task]) -> None:
        try:
            while (task := self._next(source)) is not None:
                self._ended.put(slot.do(task))
        except BaseException as error:
            self._ended.put(error)
        finally:
            slot.close()
            self._ended.put(None)

    def _next(self, source: Iterator[Task]) -> Task | None:
        with self._taking:
            return None if self._stopping else next(source, None)


class Slot:
    """A place for one worker process, which is replaced when it dies."""

    def __init__(self, work: Work, threads: int, device: str | None) -> None:
        self.task: Task | None = None
        self.device = device
        self._beginning = (work, threads, device)
        self._executor: ProcessPoolExecutor | None = None
        self._process: BaseProcess | None = None
        self._unready = 0  # processes in a row that died before their first task

    def do(self, task: Task) -> Outcome:
        self.task = task
        out_of_memory, said = killed_for_memory(), VOICES.mark()
        try:
            return self._ready().submit(do, task).result()
        except BrokenProcessPool:
            process = self._process
            self._unready = 0 if process is not None else self._unready + 1
            if self._unready == STARTS:
                reason = VOICES.last_line(said) or "try: python -c 'import study.launch.worker'"
                raise WorkerError(f"worker processes die as they start, {STARTS} in a row: {reason}") from None
            self.close()  # waits for the process: before that, its exit code may be read by two threads at once
            if process is not None and process.exitcode == LOST:
                return Outcome(task, None)
            failure, message = autopsy(process, killed_for_memory() > out_of_memory, VOICES.last_line(said))
            return record_death(task, failure, message)
        finally:
            VOICES.pass_on()
            self.task = None

    def signal(self, number: int) -> None:
        """Pass a signal on to a process at work."""
        if self.task is not None and self._process is not None and self._process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
        self._executor = self._process = None

    def _ready(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(1, server(self._beginning[1]), begin, self._beginning)
            try:
                pid = self._executor.submit(os.getpid).result()
            except (OSError, EOFError) as error:  # not even the server that workers come from could start
                raise BrokenProcessPool(str(error)) from error
            self._process = next((child for child in multiprocessing.active_children() if child.pid == pid), None)
        return self._executor


def autopsy(process: BaseProcess | None, out_of_memory: bool, last_line: str = "") -> tuple[Failure, str]:
    """Why a worker died: its exit code, the system's count of processes killed for memory, the last line on stderr."""
    code = process.exitcode if process is not None else None
    told = f"; last on stderr: {last_line}" if last_line else ""
    if code is None:
        return Failure.KILLED, f"the worker process died as it started{told}"
    if code == UNTOLD:
        return Failure.KILLED, "the worker process died, and the server it came from with it"
    if code >= 0:
        return Failure.BUG, f"the worker process left with exit code {code}{told}"
    name = signal.Signals(-code).name
    if out_of_memory and code == -signal.SIGKILL:
        return Failure.OUT_OF_MEMORY, f"the system ran out of memory ({name})"
    if -code in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Failure.KILLED, f"the worker process was killed ({name})"
    return Failure.BUG, f"the worker process crashed ({name}){told}"


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Names by which CUDA_VISIBLE_DEVICES selects each GPU."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in chosen.split(",")] if chosen else [str(index) for index in range(count)]
    return names[:count]


def killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory so far."""
    total = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with suppress(OSError):
            lines = Path(path).read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.split()[0] == "oom_kill")
    return total
