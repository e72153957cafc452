"""Precision, recall, density and coverage: does a sample lie where the reference does, and the other way round.

A set's manifold is the union of balls around its images, each reaching to the k-th nearest neighbour.
Precision and recall: Kynkäänniemi et al. 2019, with ADM's k = 3. Density and coverage: Naeem et al. 2020, k = 5.
All four depend on both counts: only equal N may be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.denoiser import require
from study.score.halves import split
from study.score.strata import Strata

Array = NDArray[np.float64]

BLOCK = 2048
NAMES = ("precision", "recall", "density", "coverage")
PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


@dataclass(frozen=True)
class Manifold:
    """What each image contributes; the metric is the mean."""

    precision: Array  # per sample: is it in a ball of the reference?
    recall: Array  # per reference image: is it in a ball of the samples?
    density: Array  # per sample: in how many balls of the reference is it, over k
    coverage: Array  # per reference image: does its own ball hold a sample?

    def means(self) -> dict[str, float]:
        return {name: float(getattr(self, name).mean()) for name in NAMES}


def manifold(
    samples: NDArray[np.floating],
    reference: NDArray[np.floating],
    k: int = PRECISION_NEIGHBOURS,
    k_density: int = DENSITY_NEIGHBOURS,
) -> Manifold:
    """All four from one pass over the distances between the sets."""
    most = max(k, k_density)
    require(samples.shape[1] == reference.shape[1], "features.d", samples.shape[1], f"{reference.shape[1]}")
    require(
        min(len(samples), len(reference)) > most,
        "images",
        min(len(samples), len(reference)),
        f"over {most}, the neighbours counted",
    )
    x, y = samples.astype(np.float64), reference.astype(np.float64)
    x_radius, y_radius, y_density_radius = radii(x, (k,))[0], *radii(y, (k, k_density))
    recall, coverage = np.zeros(len(y), dtype=bool), np.zeros(len(y), dtype=bool)
    precision, density = np.empty(len(x)), np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = squared_distances(x[rows], y)
        precision[rows] = (distance <= y_radius).any(axis=1)
        inside = distance <= y_density_radius
        density[rows] = inside.sum(axis=1) / k_density
        coverage |= inside.any(axis=0)
        recall |= (distance <= x_radius[rows, None]).any(axis=0)
    return Manifold(precision, recall.astype(float), density, coverage.astype(float))


def manifold_sd(
    samples: NDArray[np.floating],
    reference: NDArray[np.floating],
    strata: tuple[Strata, Strata],
    pairs: int,
    generator: np.random.Generator,
) -> dict[str, float]:
    """Standard deviation of each metric over draws of both sets, from complementary halves.

    Counting hits as independent, each set's balls as given, would be wrong: its 95 % hold the mean in 60 % of cases.
    """
    differences = []
    for _ in range(pairs):
        ours, theirs = split(strata[0], generator), split(strata[1], generator)
        first, second = (manifold(samples[x], reference[y]).means() for x, y in zip(ours, theirs, strict=True))
        differences.append([first[name] - second[name] for name in NAMES])
    sd = np.sqrt(np.mean(np.square(differences), axis=0)) / 2
    return dict(zip(NAMES, map(float, sd), strict=True))


def radii(points: Array, neighbours: tuple[int, ...]) -> list[Array]:
    """Squared distance to the k-th nearest other point, for each k."""
    found = [np.empty(len(points)) for _ in neighbours]
    for start in range(0, len(points), BLOCK):
        distance = squared_distances(points[start : start + BLOCK], points)
        np.fill_diagonal(distance[:, start:], 0.0)  # itself comes first
        nearest = np.partition(distance, neighbours, axis=1)
        for radius, k in zip(found, neighbours, strict=True):
            radius[start : start + BLOCK] = nearest[:, k]
    return found


def squared_distances(x: Array, y: Array) -> Array:
    square = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return square.clip(min=0)
