"""A process of the local pool: takes task after task, and goes when the pool's owner is gone.

Workers are forked from a server that has imported this module, and with it PyTorch, and computed
nothing: forking after the first parallel operation would hang the child.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import torch

from study.launch.work import Outcome, Task, Work, perform

RESEND = 1.0  # seconds between polite requests: one that comes before a run listens is ignored


class Worker:
    """What the process keeps from task to task."""

    def __init__(self, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads
        self._busy = threading.Lock()

    def do(self, task: Task) -> Outcome:
        with self._busy:
            torch.set_num_threads(self.threads)
            forget_peak_memory()
            return perform(task, self.work)

    def follow_owner(self) -> None:
        """Once the owner is dead, let the run in hand save itself, as on any polite request; then go."""
        owner = multiprocessing.parent_process()
        assert owner is not None
        owner.join()
        while not self._busy.acquire(timeout=RESEND):
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)


_worker: Worker


def begin(work: Work, threads: int, device: str | None) -> None:
    """Called once in a new process. Signals are left to the pool's owner to pass on; a run listens to them itself."""
    global _worker
    os.setsid()  # or Ctrl-C on the terminal would reach this process as well
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    harness = logging.getLogger("study")
    harness.setLevel(logging.INFO)
    harness.addHandler(logging.NullHandler())
    _worker = Worker(work, threads)
    threading.Thread(target=_worker.follow_owner, name="owner", daemon=True).start()


def do(task: Task) -> Outcome:
    return _worker.do(task)


def forget_peak_memory() -> None:
    """So that a run's peak is its own and not that of a run before it in this process."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
