"""A machine whose clock is a number: work of known cost, jitter, spikes, drift, and processes that differ."""

from __future__ import annotations

import math
import random
from typing import Any

from study.bench.timing import LEAST_SAMPLE, Sample, Timer, block, warm_up


class SimulatedTimer(Timer):
    def __init__(self) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def between(self, start: float, stop: float) -> float:
        return stop - start

    def settle(self) -> None:
        """Nothing is ever under way."""

    def wall(self) -> float:
        return self.now


class Machine(SimulatedTimer):
    """Time that passes while working is stretched by a slow wave and a trend that all work shares."""

    def __init__(
        self, seed: int, jitter: float = 0.03, drift: float = 0.3, process: float = 0.01, spikes: float = 0.01
    ) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.jitter, self.drift, self.process, self.spikes = jitter, drift, process, spikes
        self.phase = self.random.uniform(0, 2 * math.pi)

    def spend(self, seconds: float) -> None:
        slow = 1 + self.drift * (0.5 + 0.5 * math.sin(self.now / 20 + self.phase)) + 0.001 * self.now
        spike = 3.0 if self.random.random() < self.spikes else 1.0
        self.now += seconds * slow * spike * math.exp(self.random.gauss(0, self.jitter))


class SimulatedCell:
    """Passes for a process: its own luck with memory and caches makes it a little slow or fast for good."""

    def __init__(self, machine: Machine, seconds: float) -> None:
        self.machine = machine
        self.seconds = seconds * math.exp(machine.random.gauss(0, machine.process))
        self.calls = 1

    def open(self) -> dict[str, Any]:
        warm = warm_up(self._work(), self.machine, 1.0, LEAST_SAMPLE["cpu"])
        self.calls = warm.calls_per_sample
        return {"warm_up": {"first": warm.first, "stable": warm.stable}, "facts": {}}

    def block(self, samples: int, seconds: float) -> list[Sample]:
        return block(self._work(), self.machine, samples, seconds, self.calls)

    def close(self) -> None:
        """Nothing to end."""

    def _work(self) -> dict[str, Any]:
        return {"call": lambda: self.machine.spend(self.seconds)}
