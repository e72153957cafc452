"""Intervals, each with its assumption in its name and its random numbers given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from models.denoiser import require

Interval: TypeAlias = tuple[float, float]

LEVEL = 0.95


def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """Student's t: how many standard errors the central `level` reaches."""
    return float(scipy.stats.t.ppf((1 + level) / 2, degrees))


def normal_quantile(level: float = LEVEL) -> float:
    return float(scipy.stats.norm.ppf((1 + level) / 2))


def t_interval(values: Sequence[float] | NDArray[np.floating], level: float = LEVEL) -> Interval:
    """Of the mean of independent values, such as one per seed."""
    array = _observations(values, least=2)
    reach = t_quantile(len(array) - 1, level) * float(array.std(ddof=1)) / len(array) ** 0.5
    return float(array.mean()) - reach, float(array.mean()) + reach


def wilson_interval(hits: int, n: int, level: float = LEVEL) -> Interval:
    """Of a proportion: keeps inside 0..1, and is not empty at 0 or n hits."""
    require(n > 0 and 0 <= hits <= n, "hits, n", (hits, n), "0 <= hits <= n, n > 0")
    z = normal_quantile(level)
    centre = (hits + z * z / 2) / (n + z * z)
    reach = z * (hits * (n - hits) / n + z * z / 4) ** 0.5 / (n + z * z)
    low = 0.0 if hits == 0 else centre - reach
    return low, 1.0 if hits == n else centre + reach


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.floating],
    generator: np.random.Generator,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda draws: draws.mean(axis=1),
    resamples: int = 2000,
    level: float = LEVEL,
) -> Interval:
    """Percentiles of a statistic over resamples; `statistic` maps (resamples, n) to (resamples,)."""
    array = _observations(values, least=2)
    draws = array[generator.integers(len(array), size=(resamples, len(array)))]
    low, high = np.quantile(statistic(draws), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _observations(values: Sequence[float] | NDArray[np.floating], least: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    require(array.ndim == 1 and len(array) >= least, "values", array.shape, f"at least {least} numbers")
    require(bool(np.isfinite(array).all()), "values", "NaN or infinity", "finite numbers")
    return array
