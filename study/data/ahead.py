"""Images decoded by threads before they are asked for.

Threads, for JPEG and PNG decoding and resizing leave the interpreter's lock free, and threads share memory: nothing
is copied between processes, nothing is left behind when the process is killed (benchmarks/loader.py compares both).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from study.strict import ConfigError

THREADS_VARIABLE = "DATA_THREADS"  # overrides their number
MOST_THREADS = 16
PATIENCE = 5.0  # seconds that the end of the process waits for threads to finish the image in hand

Decode: TypeAlias = Callable[[int], NDArray[np.uint8]]
"""number -> (C, H, W); called by many threads at once"""


def thread_count() -> int:
    """One per core that is this process's share of the machine's, of those that torchrun started on it."""
    given = os.environ.get(THREADS_VARIABLE, "")
    if given and not (given.isdigit() and int(given)):
        raise ConfigError(f"{THREADS_VARIABLE}={given!r} is not valid: must be a number of threads, 1 or more")
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // (int(beside) if beside.isdigit() and int(beside) else 1)
    return int(given) if given else min(max(share, 1), MOST_THREADS)


class _Batch:
    """Images being decoded into one tensor; any thread may decode any of them."""

    def __init__(self, numbers: Tensor, shape: tuple[int, int, int], pinned: bool) -> None:
        self.numbers = numbers.tolist()
        self.pixels = torch.empty((len(self.numbers), *shape), dtype=torch.uint8, pin_memory=pinned)
        self.rows = self.pixels.numpy()
        self.dropped = False  # nobody will ask for it
        self.errors: dict[int, Exception] = {}
        self._left = len(self.numbers)
        self._lock, self._done = threading.Lock(), threading.Event()
        if not self.numbers:
            self._done.set()

    def fill(self, row: int, decode: Decode) -> None:
        try:
            if not self.dropped:
                self.rows[row] = decode(self.numbers[row])
        except Exception as error:
            self.errors[row] = error
        with self._lock:
            self._left -= 1
        if not self._left:
            self._done.set()

    def wait(self) -> Tensor:
        """uint8 (n, C, H, W); the error of the first image that has one, whichever was decoded first."""
        self._done.wait()
        if self.errors:
            raise self.errors[min(self.errors)]
        return self.pixels


Tasks: TypeAlias = "SimpleQueue[tuple[_Batch, int] | None]"


class Ahead:
    """Decodes what is expected next, in that order; one consumer at a time."""

    def __init__(self, decode: Decode, shape: tuple[int, int, int], threads: int, pinned: bool = False) -> None:
        self._shape, self._pinned = shape, pinned
        self._tasks: Tasks = SimpleQueue()
        self._coming: dict[bytes, _Batch] = {}
        self._workers = [
            threading.Thread(target=_work, args=(self._tasks, decode), daemon=True, name=f"decode-{number}")
            for number in range(threads)
        ]
        for worker in self._workers:
            worker.start()
        weakref.finalize(self, _stop, self._tasks, self._workers)

    def expect(self, batches: Iterable[Tensor]) -> None:
        """From now on, these and no others: what was expected before and is no longer is dropped."""
        coming: dict[bytes, _Batch] = {}
        for numbers in batches:
            key = numbers.numpy().tobytes()
            if key not in coming:
                coming[key] = self._coming.pop(key) if key in self._coming else self._begin(numbers)
        for batch in self._coming.values():
            batch.dropped = True
        self._coming = coming

    def take(self, numbers: Tensor) -> Tensor:
        """uint8 (n, C, H, W) of the images `numbers` int64 (n,), expected or not."""
        key = numbers.numpy().tobytes()
        return (self._coming.pop(key) if key in self._coming else self._begin(numbers)).wait()

    def _begin(self, numbers: Tensor) -> _Batch:
        batch = _Batch(numbers, self._shape, self._pinned)
        for row in range(len(numbers)):
            self._tasks.put((batch, row))
        return batch


def _work(tasks: Tasks, decode: Decode) -> None:
    while (task := tasks.get()) is not None:
        batch, row = task
        batch.fill(row, decode)
        del batch, task  # not kept while waiting for the next


def _stop(tasks: Tasks, workers: list[threading.Thread]) -> None:
    """Every thread ends after the image in hand; also at the end of the process, which must not outlive them."""
    with suppress(Empty):
        while True:  # asking first whether there is one would not do: a thread may take it in between
            tasks.get_nowait()
    for _ in workers:
        tasks.put(None)
    for worker in workers:
        if worker is not threading.current_thread():
            worker.join(PATIENCE)
