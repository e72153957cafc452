"""The Fréchet distance between the Gaussians of two feature sets, exact in float64 (Heusel et al. 2017, eq. 6).

    |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)

With A = F F^T and B = G G^T the last trace is the nuclear norm of F^T G. No epsilon is ever added to a
diagonal, and no root of a non-symmetric product is taken: both cost digits when there are fewer images
than features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from models.denoiser import require
from study.score.halves import Halves, halves
from study.score.strata import Strata, independent

Array = NDArray[np.float64]

BLOCK = 4096  # rows turned to float64 at once


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of n feature vectors; fewer vectors than dimensions are kept as they are."""

    mean: Array  # (d,)
    n: int  # 0: unknown, as in a published file
    deviations: Array | None = None  # (n, d) over sqrt(n - 1), only if n <= d
    full: Array | None = None  # (d, d), only if n > d

    @cached_property
    def trace(self) -> float:
        return float(np.sum(self.deviations**2) if self.full is None else np.trace(self.full))  # type: ignore[operator]

    @cached_property
    def factor(self) -> Array:
        """F (d, r) with F F^T the covariance: lower triangular if the covariance is regular."""
        if self.deviations is not None:
            return self.deviations.T
        try:
            return np.asfortranarray(np.linalg.cholesky(self.full))  # type: ignore[arg-type]
        except np.linalg.LinAlgError:
            return symmetric_factor(self.full)  # type: ignore[arg-type]

    @cached_property
    def triangular(self) -> bool:
        return self.full is not None and not np.triu(self.factor, 1).any() and self.factor.shape == self.full.shape


def moments(features: NDArray[np.floating]) -> Moments:
    """Accumulated in float64 around the mean."""
    require(features.ndim == 2, "features.shape", features.shape, "(N, d)")
    n, d = features.shape
    require(n >= 2, "images", n, "at least 2 images for a covariance")
    require(bool(np.isfinite(features).all()), "features", "NaN or infinity", "finite values")
    mean = features.mean(axis=0, dtype=np.float64)
    if n <= d:
        return Moments(mean, n, deviations=(features - mean) / np.sqrt(n - 1))
    total = np.zeros((d, d))
    for start in range(0, n, BLOCK):
        block = features[start : start + BLOCK] - mean
        total += block.T @ block
    return Moments(mean, n, full=total / (n - 1))


def symmetric_factor(covariance: Array) -> Array:
    """F = V sqrt(w) without the directions that have no variance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 0
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet(a: Moments, b: Moments) -> float:
    """The distance. What depends on `b` alone is computed once per `b`: make it the reference."""
    require(a.mean.shape == b.mean.shape, "features.d", a.mean.shape[0], f"{b.mean.shape[0]}, as the reference has")
    difference = a.mean - b.mean
    return float(difference @ difference) + a.trace + b.trace - 2 * overlap(a, b)


def overlap(a: Moments, b: Moments) -> float:
    """tr (A B)^(1/2)."""
    if a.full is None or b.full is None:
        return float(scipy.linalg.svdvals(a.factor.T @ b.factor).sum())
    values = scipy.linalg.eigh(congruence(a.full, b), eigvals_only=True, driver="evd", check_finite=False)
    return float(np.sqrt(values.clip(min=0)).sum())


def congruence(covariance: Array, b: Moments) -> Array:
    """G^T A G: by triangular products, half the work, where G is triangular."""
    if not b.triangular:
        return b.factor.T @ covariance @ b.factor
    triangular_product = scipy.linalg.blas.dtrmm
    left = triangular_product(1.0, b.factor, np.asfortranarray(covariance), side=0, lower=1, trans_a=1)
    return triangular_product(1.0, b.factor, left, side=1, lower=1)


def frechet_halves(
    samples: NDArray[np.floating],
    reference: NDArray[np.floating] | Moments,
    pairs: int,
    generator: np.random.Generator,
    strata: tuple[Strata, Strata] | None = None,
) -> Halves:
    """The distance, its limit for many images, and their uncertainty.

    A reference given as features is halved with the samples and the limit is the distance between the two
    distributions; one given as statistics only stays, and the limit is the distance to exactly these.
    """
    fixed = reference if isinstance(reference, Moments) else None
    ours, theirs = strata or (independent(len(samples)), independent(0 if fixed else len(reference)))  # type: ignore[arg-type]

    def distance(x: NDArray[np.intp], y: NDArray[np.intp]) -> float:
        return frechet(moments(samples[x]), fixed or moments(reference[y]))  # type: ignore[index]

    return halves(distance, ours, independent(0) if fixed else theirs, pairs, generator)
