"""Sliced Wasserstein distance between sets of images, pixel by pixel: needs no extractor at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PROJECTIONS = 256
BLOCK = 1024  # images turned to float64 at once


def directions(dimensions: int, generator: np.random.Generator, count: int = PROJECTIONS) -> NDArray[np.float64]:
    """Random unit vectors as columns (d, count)."""
    drawn = generator.standard_normal((dimensions, count))
    return drawn / np.linalg.norm(drawn, axis=0)


def project(images: Tensor, along: NDArray[np.float64]) -> NDArray[np.float64]:
    """uint8 images (N, C, H, W) as vectors in [-1, 1] along each of k directions (C H W, k): (N, k)."""
    blocks = (block.flatten(1).numpy().astype(np.float64) / 127.5 - 1 for block in images.split(BLOCK))
    return np.concatenate([block @ along for block in blocks])


def sliced_wasserstein(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Root mean square, over the columns, of the W2 distance of projected images: (N, k), (M, k)."""
    return float(wasserstein_squared(x, y).mean() ** 0.5)


def wasserstein_squared(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared W2 of each column: (n, k), (m, k) -> (k,). Exact for any two counts.

    The optimal coupling pairs quantiles, which are constant between the merged steps of both counts.
    """
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    n, m = len(x), len(y)
    if n == m:
        return ((x - y) ** 2).mean(axis=0)
    steps = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    weights = np.diff(steps, prepend=0) / (n * m)
    return weights @ (x[(steps - 1) // m] - y[(steps - 1) // n]) ** 2
