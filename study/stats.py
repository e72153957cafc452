"""Intervals, tests and fits, each with its assumption in its name and its random numbers given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import scipy.optimize
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from models.denoiser import require

Interval: TypeAlias = tuple[float, float]
Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]  # one number per resample; resamples come first

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
TIED = 1e-12  # of the largest: what rounding leaves of values that are all the same


@lru_cache(maxsize=1024)  # asked again for every cell of a table
def t_quantile(degrees: float, level: float = LEVEL) -> float:
    """Student's t: how many standard errors the central `level` reaches."""
    return float(scipy.stats.t.ppf((1 + level) / 2, degrees))


def normal_quantile(level: float = LEVEL) -> float:
    return float(scipy.stats.norm.ppf((1 + level) / 2))


def two_sided_p(t: float, degrees: float) -> float:
    """How often noise alone takes Student's t at least as far from zero."""
    return float(2 * scipy.stats.t.sf(abs(t), degrees))


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
    statistic: Statistic = lambda draws: draws.mean(axis=1),
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Percentiles of a statistic over resamples; `statistic` maps (resamples, n) to (resamples,).

    Meant for some dozens of values or more: of a handful, percentiles are too narrow; take `t_interval`.
    """
    array = _observations(values, least=2)
    draws = array[generator.integers(len(array), size=(resamples, len(array)))]
    return _percentiles(statistic(draws), level)


def stratified_bootstrap_interval(
    scores: ArrayLike,
    generator: np.random.Generator,
    statistic: Statistic | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Of a statistic (the IQM) of `scores` (settings, seeds), seeds redrawn within each setting.

    `statistic` maps (resamples, settings, seeds) to (resamples,). Deviations from a setting's mean are widened by
    sqrt(n / (n - 1)), after Rao and Wu (1988): plain resampling of 3 to 5 seeds gives too narrow an interval.
    """
    resampled = _stratified_draws(_table(scores), generator, resamples)
    return _percentiles(iqm(resampled) if statistic is None else statistic(resampled), level)


def _stratified_draws(table: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """(settings, seeds) to (resamples, settings, seeds)."""
    settings, seeds = table.shape
    require(seeds >= 2, "seeds", seeds, "at least 2 per setting")
    centre = table.mean(axis=1, keepdims=True)
    widened = centre + (table - centre) * math.sqrt(seeds / (seeds - 1))
    chosen = generator.integers(seeds, size=(resamples, settings, seeds))
    return np.take_along_axis(np.broadcast_to(widened, chosen.shape), chosen, axis=2)


@dataclass(frozen=True)
class Paired:
    """A mean difference to the baseline, its interval, and how easily noise alone makes one as large."""

    mean: float
    interval: Interval
    p: float
    n: int


def paired_difference(values: ArrayLike, baseline: ArrayLike, level: float = LEVEL) -> Paired:
    """Of runs that share their seeds one by one."""
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    require(ours.shape == theirs.shape, "values, baseline", (ours.shape, theirs.shape), "of one shape, seed by seed")
    apart = _observations(ours - theirs, least=2)
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
    t = float(apart.mean()) / error if error else math.copysign(math.inf, apart.mean()) if apart.mean() else 0.0
    return Paired(float(apart.mean()), t_interval(apart, level), two_sided_p(t, len(apart) - 1), len(apart))


@dataclass(frozen=True)
class Spreads:
    """The least and the most of several standard deviations, and how easily chance alone sets as many so far apart."""

    p: float
    least: float
    most: float


def bartlett(groups: Sequence[Sequence[float]]) -> Spreads | None:
    """Bartlett's test of equal variances; None where one has none, as of scores that only tie, which it cannot judge.

    What a seed does to all groups alike makes it find less, not more.
    """
    arrays = [_observations(np.asarray(group), least=2) for group in groups]
    deviations = [float(array.std(ddof=1)) for array in arrays]
    if any(d <= TIED * float(np.abs(array).max()) for d, array in zip(deviations, arrays, strict=True)):
        return None
    return Spreads(float(scipy.stats.bartlett(*arrays).pvalue), min(deviations), max(deviations))


def holm(p: ArrayLike) -> Floats:
    """Adjusted p-values: below alpha, they are found together with an error anywhere in at most alpha of studies."""
    given = np.asarray(p, dtype=np.float64)
    require(given.ndim == 1 and bool(((given >= 0) & (given <= 1)).all()), "p", given.tolist(), "numbers in 0..1")
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def minimum_detectable_difference(
    deviation: float, pairs: int, degrees: float | None = None, power: float = POWER, level: float = LEVEL
) -> float:
    """The least true difference that `pairs` seeds find with `power`, a single run scattering by `deviation`.

    `degrees` are those of the deviation: more than pairs - 1 when it is pooled over a study.
    """
    freedom = pairs - 1 if degrees is None else degrees
    require(pairs >= 1 and freedom > 0, "pairs", pairs, "at least 2, or degrees of a pooled deviation")
    require(deviation >= 0, "deviation", deviation, "not negative")
    bar = t_quantile(freedom, level)

    def missed(shift: float) -> float:
        wrong_sign = np.nan_to_num(scipy.stats.nct.cdf(-bar, freedom, shift))  # too small to be computed: 0
        return float(scipy.stats.nct.sf(bar, freedom, shift) + wrong_sign) - power

    shift = float(scipy.optimize.brentq(missed, 0.0, 4 * bar + 10))
    return shift * deviation * math.sqrt(2 / pairs)


def iqm(scores: ArrayLike) -> Floats:
    """Interquartile mean of the last two axes, settings and seeds together: a quarter is cut from either end."""
    array = np.asarray(scores, dtype=np.float64)
    flat = np.sort(array.reshape(*array.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(flat[..., cut : flat.shape[-1] - cut].mean(axis=-1))


@dataclass(frozen=True)
class Profile:
    """Share of runs that score at or below each threshold, with a pointwise band."""

    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Profile:
    """Of losses, (settings, seeds): the earlier it rises the better. Seeds are redrawn within settings for the band."""
    table, at = _table(scores), np.asarray(thresholds, dtype=np.float64)
    settings, seeds = table.shape
    require(seeds >= 2, "seeds", seeds, "at least 2 per setting")
    below = (table[..., None] <= at).astype(np.float64)  # (settings, seeds, thresholds)
    chosen = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=(resamples, settings)) / seeds
    drawn = np.einsum("rks,kst->rt", chosen, below) / settings
    share = below.mean(axis=(0, 1))
    widened = share + (drawn - share) * math.sqrt(seeds / (seeds - 1))
    low, high = np.clip(np.quantile(widened, [(1 - level) / 2, (1 + level) / 2], axis=0), 0, 1)
    return Profile(at, share, low, high)


@dataclass(frozen=True)
class Front:
    """Which points are undominated: cheaper or better than every other."""

    by_mean: NDArray[np.bool_]
    possible: NDArray[np.bool_]  # none that costs no more is better by more than noise

    def words(self) -> list[str]:
        pairs = zip(self.by_mean, self.possible, strict=True)
        return ["on the front" if mean else "within noise of it" if may else "dominated" for mean, may in pairs]


def pareto_front(cost: ArrayLike, loss: ArrayLike, reach: ArrayLike | None = None) -> Front:
    """Less of both is better; `reach` is half the interval of each loss, NaN where it is not known (one seed)."""
    spent, lost = np.asarray(cost, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    noise = np.zeros_like(lost) if reach is None else np.asarray(reach, dtype=np.float64)
    require(spent.shape == lost.shape == noise.shape and spent.ndim == 1, "cost, loss", spent.shape, "one each")
    cheaper = spent[:, None] <= spent[None, :]  # [i, j]: i costs no more than j
    better = lost[:, None] - lost[None, :]
    strictly = (better < 0) | ((better == 0) & (spent[:, None] < spent[None, :]))
    told = better < -np.hypot(noise[:, None], noise[None, :])  # False wherever a reach is unknown
    by_mean, possible = (np.logical_not((cheaper & worse).any(axis=0)) for worse in (strictly, told))
    return Front(np.asarray(by_mean), np.asarray(possible))


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * compute ** exponent, fitted as a line through the logarithms."""

    exponent: float
    scale: float
    exponent_interval: Interval
    deviation: float  # of one point, in natural logarithms
    n: int
    centre: float  # mean log compute
    breadth: float  # sum of squares of log compute about it

    def at(self, compute: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats, Floats]:
        """The fitted line and the interval of the line, low and high."""
        x = np.log(np.asarray(compute, dtype=np.float64))
        line = math.log(self.scale) + self.exponent * x
        error = self.deviation * np.sqrt(1 / self.n + (x - self.centre) ** 2 / self.breadth)
        reach = t_quantile(self.n - 2, level) * error
        return np.exp(line), np.exp(line - reach), np.exp(line + reach)


def power_law(compute: ArrayLike, loss: ArrayLike, level: float = LEVEL) -> PowerLaw:
    """Least squares in logarithms; every point, seeds apart, is one observation."""
    x, y = _logarithms(compute, loss)
    require(x.shape == y.shape and len(x) >= 3, "compute, loss", (x.shape, y.shape), "at least 3 points of one shape")
    breadth = float(((x - x.mean()) ** 2).sum())
    require(breadth > 0, "compute", "one value", "at least two different values")
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / breadth
    residual = y - y.mean() - slope * (x - x.mean())
    deviation = math.sqrt(float(residual @ residual) / (len(x) - 2))
    reach = t_quantile(len(x) - 2, level) * deviation / math.sqrt(breadth)
    scale = math.exp(float(y.mean()) - slope * float(x.mean()))
    return PowerLaw(slope, scale, (slope - reach, slope + reach), deviation, len(x), float(x.mean()), breadth)


def at_equal_compute(compute: ArrayLike, loss: ArrayLike, wanted: float) -> float:
    """A training curve's loss at `wanted`, between its points a power law; NaN beyond them, never extrapolated."""
    x, y = _logarithms(compute, loss)
    require(wanted > 0, "wanted", wanted, "a positive amount of compute")
    order = np.argsort(x, kind="stable")
    x, y, at = x[order], y[order], math.log(wanted)
    slack = 1e-9  # a curve's own end is inside it
    if not len(x) or at < x[0] - slack or at > x[-1] + slack:
        return math.nan
    return float(np.exp(np.interp(at, x, y)))


def first_reached(compute: ArrayLike, loss: ArrayLike, wanted: float) -> float:
    """Where a training curve first comes down to `wanted`, between its points a power law; NaN if it never does.

    A curve that begins below is not read backwards: NaN as well.
    """
    x, y = _logarithms(compute, loss)
    require(wanted > 0, "wanted", wanted, "a positive loss")
    order = np.argsort(x, kind="stable")
    x, y, level = x[order], y[order], math.log(wanted)
    below = np.flatnonzero(y <= level)
    if not len(below) or below[0] == 0:
        return math.nan
    end = int(below[0])
    share = (y[end - 1] - level) / (y[end - 1] - y[end])
    return float(np.exp(x[end - 1] + share * (x[end] - x[end - 1])))


def _percentiles(statistics: Floats, level: float) -> Interval:
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _observations(values: Sequence[float] | NDArray[np.floating], least: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    require(array.ndim == 1 and len(array) >= least, "values", array.shape, f"at least {least} numbers")
    require(bool(np.isfinite(array).all()), "values", "NaN or infinity", "finite numbers")
    return array


def _table(scores: ArrayLike) -> Floats:
    array = np.asarray(scores, dtype=np.float64)
    require(array.ndim == 2 and array.size > 0, "scores", array.shape, "(settings, seeds)")
    require(bool(np.isfinite(array).all()), "scores", "NaN or infinity", "finite numbers")
    return array


def _logarithms(compute: ArrayLike, loss: ArrayLike) -> tuple[Floats, Floats]:
    return np.log(_positive("compute", compute)), np.log(_positive("loss", loss))


def _positive(name: str, values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    require(array.ndim == 1 and bool((np.isfinite(array) & (array > 0)).all()), name, "not so", "positive numbers")
    return array
