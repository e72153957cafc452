"""What samples say: a median with its spread, a paired ratio with its interval, and whether to believe either.

The unit of evidence is the process: intervals resample processes, and blocks within them, and are widened
as Student's t is, for three processes resampled look surer than they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.denoiser import require
from study.bench.config import Protocol
from study.bench.schedule import Taken
from study.stats import LEVEL, RESAMPLES, Floats, Interval, normal_quantile, t_quantile

WHOLE = -1  # the phase number of all phases together
WALL = -2  # and of the synchronised wall clock
CPU = -3  # and of CPU time


@dataclass(frozen=True)
class Summary:
    """Seconds of one phase over all samples; the interval is the median's, over processes."""

    median: float
    low_quartile: float
    high_quartile: float
    p95: float
    n: int
    interval: Interval
    verdict: str  # "", "noisy" or "rejected"

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.high_quartile - self.low_quartile) / self.median


@dataclass(frozen=True)
class Ratio:
    """Time over the baseline's time."""

    value: float
    interval: Interval

    @property
    def told(self) -> str:
        """Whether the interval leaves room for doubt."""
        low, high = self.interval
        return "slower" if low > 1 else "faster" if high < 1 else "not told apart"

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"


def seconds_of(taken: Taken, phase: int) -> float:
    sample = taken.sample
    if phase == WALL:
        return sample.wall
    if phase == CPU:
        return sample.cpu
    return sum(sample.phases) if phase == WHOLE else sample.phases[phase]


def summarise(taken: Sequence[Taken], phase: int, protocol: Protocol) -> Summary:
    values = np.array([seconds_of(each, phase) for each in taken])
    require(len(values) > 0 and bool((values > 0).all()), "samples", len(values), "one or more, of positive length")
    low, median, high, p95 = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75, 0.95]))
    spread = (high - low) / median
    verdict = "rejected" if spread > protocol.rejected else "noisy" if spread > protocol.noisy else ""
    deviations = _reach(log_blocks(taken, phase), np.random.default_rng(protocol.seed))
    interval = (median * math.exp(deviations[0]), median * math.exp(deviations[1]))
    return Summary(median, low, high, p95, len(values), interval, verdict)


def log_blocks(taken: Sequence[Taken], phase: int) -> Floats:
    """(processes, blocks): the logarithm of each block's median."""
    cells: dict[tuple[int, int], list[float]] = {}
    for each in taken:
        cells.setdefault((each.repeat, each.block), []).append(seconds_of(each, phase))
    repeats, blocks = (1 + max(key[axis] for key in cells) for axis in (0, 1))
    table = np.full((repeats, blocks), np.nan)
    for (repeat, block), values in cells.items():
        table[repeat, block] = math.log(float(np.median(values)))
    require(not np.isnan(table).any(), "samples", "with holes", "every block of every process")
    return table


def paired_ratio(
    ours: Sequence[Taken], baseline: Sequence[Taken], phase: int, seed: int = 0, level: float = LEVEL
) -> Ratio:
    """Of cells timed in turns: the blocks of one round are compared with each other, so drift cancels."""
    logs = log_blocks(ours, phase) - log_blocks(baseline, phase)
    low, high = _reach(logs, np.random.default_rng(seed), level)
    centre = _centre(logs)
    return Ratio(math.exp(centre), (math.exp(centre + low), math.exp(centre + high)))


def unpaired_ratio(
    ours: Sequence[Taken], baseline: Sequence[Taken], phase: int, seed: int = 0, level: float = LEVEL
) -> Ratio:
    """Of cells timed at different times: nothing cancels, and what drifted between counts as a difference."""
    generator = np.random.default_rng(seed)
    mine, theirs = (log_blocks(taken, phase) for taken in (ours, baseline))
    drawn = _deviations(mine, generator, level) - _deviations(theirs, generator, level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    centre = _centre(mine) - _centre(theirs)
    return Ratio(math.exp(centre), (math.exp(centre + low), math.exp(centre + high)))


def _centre(logs: Floats) -> float:
    return float(np.median(logs, axis=1).mean())


def _reach(logs: Floats, generator: np.random.Generator, level: float = LEVEL) -> Interval:
    low, high = np.quantile(_deviations(logs, generator, level), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _deviations(logs: Floats, generator: np.random.Generator, level: float = LEVEL) -> Floats:
    """(resamples,) of the centre from what was seen, for logs (processes, blocks).

    One process alone says nothing of the next one: its blocks are resampled, and the interval is of that process.
    """
    repeats, blocks = logs.shape
    units = repeats if repeats > 1 else blocks
    if units == 1:
        return np.array([-math.inf, math.inf])
    rows = generator.integers(repeats, size=(RESAMPLES, repeats, 1))
    columns = generator.integers(blocks, size=(RESAMPLES, repeats, blocks))
    drawn = np.median(logs[rows, columns], axis=2).mean(axis=1) - _centre(logs)
    return np.asarray(drawn * math.sqrt(units / (units - 1)) * t_quantile(units - 1, level) / normal_quantile(level))


def ranking(taken: Mapping[str, Sequence[Taken]], phase: int = WHOLE) -> list[str]:
    """Names from fastest to slowest, by the blocks' centres."""
    return sorted(taken, key=lambda name: _centre(log_blocks(taken[name], phase)))
