"""Times of single calls on a device, and what repeated ones come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch

HEAD_START = 4_000_000  # cycles for which the device waits while a chain of launches is queued
FLUSHED = 1 << 28  # bytes: more than any second-level cache


class Spread(NamedTuple):
    """Milliseconds: the median and the quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Self:
        """Two at least."""
        return cls(*statistics.quantiles(times, n=4, method="inclusive"))

    def __str__(self) -> str:
        low, median, high = (f"{time:.{1 if self.median >= 10 else 3}f}" for time in self)
        return f"{median} ({low}-{high})"


class Clock:
    """The device's own times (events) after a head start that hides launching, or the wall clock's with `launching`."""

    def __init__(self, device: torch.device, launching: bool = False) -> None:
        self.cuda, self.launching = device.type == "cuda", launching
        if self.cuda and not launching:
            self.flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device)
            self.marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def milliseconds(self, call: Callable[[], object]) -> float:
        if not self.cuda or self.launching:
            return self._by_the_wall(call)
        torch.cuda._sleep(HEAD_START)
        self.flushed.zero_()
        self.marks[0].record()
        call()
        self.marks[1].record()
        torch.cuda.synchronize()
        return self.marks[0].elapsed_time(self.marks[1])

    def _by_the_wall(self, call: Callable[[], object]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    def interleaved(self, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Spread | str]:
        """All in turns, each after two untimed calls; one that fails says why, and the others are still timed."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        failed: dict[str, Spread | str] = {}
        for turn in range(-2, rounds):
            for name, taken in list(times.items()):
                try:
                    if turn < 0:
                        calls[name]()
                    else:
                        taken.append(self.milliseconds(calls[name]))
                except Exception as refusal:  # whatever it is: a compiler's, the driver's, too little memory
                    failed[name] = in_words(refusal)
                    del times[name]
        return {name: Spread.of(taken) for name, taken in times.items()} | failed


def in_words(refusal: Exception) -> str:
    """One line for a table."""
    if isinstance(refusal, torch.cuda.OutOfMemoryError):
        return "out of memory"
    return f"{type(refusal).__name__}: {next(iter(str(refusal).splitlines()), '')}"
