"""Sliced Wasserstein distance between sets of images, pixel by pixel: needs no extractor at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.denoiser import require

PROJECTIONS = 256
PIECES = 32  # projections held at once


def sliced_wasserstein(
    samples: NDArray[np.floating],
    reference: NDArray[np.floating],
    generator: np.random.Generator,
    projections: int = PROJECTIONS,
) -> float:
    """Root mean square, over random directions, of the W2 distance of the projections: (N, d), (M, d) -> float."""
    require(samples.shape[1:] == reference.shape[1:], "images.shape", samples.shape[1:], f"{reference.shape[1:]}")
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    directions = generator.standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    squares = [
        wasserstein_squared(x @ piece, y @ piece)
        for piece in np.array_split(directions, max(1, projections // PIECES), axis=1)
    ]
    return float(np.concatenate(squares).mean() ** 0.5)


def wasserstein_squared(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared W2 of each column: (n, k), (m, k) -> (k,). Exact for any two counts.

    The optimal coupling pairs quantiles, which are constant between the merged steps of both counts.
    """
    a, b = np.sort(a, axis=0), np.sort(b, axis=0)
    n, m = len(a), len(b)
    if n == m:
        return ((a - b) ** 2).mean(axis=0)
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    weights = np.diff(steps, prepend=0) / (n * m)
    difference = a[(steps - 1) // m] - b[(steps - 1) // n]
    return weights @ difference**2
