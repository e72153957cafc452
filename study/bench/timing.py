"""One process's clockwork: how a sample is taken, when warm-up is over, how long a block lasts.

A work is a sequence of named phases. On a GPU, events between phases are read after one synchronisation,
and the synchronised wall clock is kept beside them: what it shows above them is launching.
"""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Work = Mapping[str, Callable[[], object]]
"""Phases in their order; together they are one call."""

WINDOW = 5  # samples whose median must stand still
LONG_SAMPLE = 0.3  # seconds; of longer ones each stands for itself
STABLE = 0.05  # how still, relative
LEAST_SAMPLE = {"cpu": 1e-3, "cuda": 5e-3}  # seconds; shorter calls are timed several at once
LONG_CALL = 0.05  # seconds; a block of shorter ones begins with one that is not timed
MOST_CALLS = 1000


class Sample(NamedTuple):
    """Seconds per call: of each phase by the device's clock, of the whole by the wall's, and of CPU time."""

    phases: tuple[float, ...]
    wall: float
    cpu: float


class Timer(ABC):
    @abstractmethod
    def mark(self) -> Any:
        """A moment in the device's own order of work."""

    @abstractmethod
    def between(self, start: Any, stop: Any) -> float:
        """Seconds between two marks, once the device has `settle`d."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until everything asked of the device is done."""

    @abstractmethod
    def wall(self) -> float: ...

    def cpu(self) -> float:
        """CPU time of this process, all its threads."""
        return self.wall()


class CpuTimer(Timer):
    def mark(self) -> int:
        return time.perf_counter_ns()

    def between(self, start: int, stop: int) -> float:
        return (stop - start) / 1e9

    def settle(self) -> None:
        """A CPU has done what it was asked."""

    def wall(self) -> float:
        return time.perf_counter_ns() / 1e9

    def cpu(self) -> float:
        return time.process_time_ns() / 1e9


class CudaTimer(CpuTimer):
    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop)) / 1e3

    def settle(self) -> None:
        torch.cuda.synchronize()


def timer_for(device: torch.device) -> Timer:
    return CudaTimer() if device.type == "cuda" else CpuTimer()


def take(work: Work, timer: Timer, calls: int = 1) -> Sample:
    """Time `calls` calls as one sample."""
    timer.settle()
    start, cpu, marks = timer.wall(), timer.cpu(), []
    for _ in range(calls):
        line = [timer.mark()]
        for phase in work.values():
            phase()
            line.append(timer.mark())
        marks.append(line)
    timer.settle()
    wall, cpu = timer.wall() - start, timer.cpu() - cpu
    phases = (sum(timer.between(line[i], line[i + 1]) for line in marks) / calls for i in range(len(work)))
    return Sample(tuple(phases), wall / calls, cpu / calls)


@dataclass(frozen=True)
class WarmUp:
    """What came before the first sample that counts."""

    first: float  # seconds of the first call, with all that it compiles and caches
    calls: int
    seconds: float
    stable: bool  # whether medians stood still before time was up
    calls_per_sample: int


def warm_up(work: Work, timer: Timer, longest: float, least_sample: float) -> WarmUp:
    """Call until the median of the last samples differs from that of those before by under 5 %, or time is up."""
    first = take(work, timer).wall  # with what it compiles and imports: no part of the time allowed
    began = timer.wall()
    seen = [take(work, timer).wall]
    calls = min(MOST_CALLS, max(1, math.ceil(least_sample / max(seen[0], 1e-9))))
    while not (stable := stands_still(seen)) and timer.wall() - began < longest:
        seen.append(take(work, timer, calls).wall)
    calls = min(MOST_CALLS, max(1, math.ceil(least_sample / max(statistics.median(seen[-WINDOW:]), 1e-9))))
    return WarmUp(first, len(seen) + 1, timer.wall() - began, stable, calls)


def stands_still(seen: Sequence[float]) -> bool:
    window = 1 if seen[-1] > LONG_SAMPLE else WINDOW
    if len(seen) < 2 * window:
        return False
    late, before = (statistics.median(part) for part in (seen[-window:], seen[-2 * window : -window]))
    return abs(late / before - 1) < STABLE


def block(work: Work, timer: Timer, samples: int, seconds: float, calls: int = 1) -> list[Sample]:
    """At least so many samples and so many seconds, after an untimed call where calls are short."""
    taken: list[Sample] = []
    whetted = take(work, timer).wall if calls > 1 else 0.0
    began = timer.wall()
    while len(taken) < samples or timer.wall() - began < seconds:
        sample = take(work, timer, calls)
        if not taken and not whetted and sample.wall < LONG_CALL:
            whetted, began = sample.wall, timer.wall()
            continue
        taken.append(sample)
    return taken
