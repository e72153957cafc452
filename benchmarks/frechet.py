"""The Fréchet step on 10,000 x 2048 features: ours, the Cholesky route it is held to, and torch-fidelity's.

    python benchmarks/frechet.py [--features 2048] [--images 10000] [--rounds 5]

CPU-seconds of one thread, the routes taken in turn so that whatever else the machine does meets all of them;
the covariances are given, the reference's root is cached as in use. Exits with 1 if in the median round ours
takes over twice the Cholesky route's time or over a third of torch-fidelity's, or differs from either by
more than 1e-8.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402  # after the threads are set
from torch_fidelity.metric_fid import fid_statistics_to_metric  # noqa: E402

from study.score.frechet import Moments, frechet, moments  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    a, b = (moments(features(seed, given.images, given.features)) for seed in (0, 1))
    frechet(a, b)  # the reference's root is computed here, once
    rounds = [[timed(route, a, b) for route in ROUTES.values()] for _ in range(given.rounds)]
    seconds = np.array([[taken for taken, _ in one] for one in rounds])  # (rounds, routes)
    values = np.array([value for _, value in rounds[0]])
    for name, taken, value in zip(ROUTES, seconds.T, values, strict=True):
        print(f"{name:24s} {np.median(taken):6.2f} CPU-s ({taken.min():.2f} to {taken.max():.2f})  {value:.12g}")
    to_cholesky, to_theirs = seconds[:, 0] / seconds[:, 1], seconds[:, 2] / seconds[:, 0]
    apart = float(np.abs(values[0] / values[1:] - 1).max())
    print(f"ours / cholesky {spread(to_cholesky)}, torch-fidelity / ours {spread(to_theirs)}, apart {apart:.1e}")
    return int(np.median(to_cholesky) > 2 or np.median(to_theirs) < 3 or apart > 1e-8)


def timed(route: Callable[[Moments, Moments], float], a: Moments, b: Moments) -> tuple[float, float]:
    began = time.process_time()
    value = route(a, b)
    return time.process_time() - began, value


def spread(ratios: np.ndarray) -> str:
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def features(seed: int, images: int, count: int) -> np.ndarray:
    """Correlated, with a spectrum that falls as real features' does."""
    rng = np.random.default_rng(seed)
    mixed = np.random.default_rng(9).standard_normal((count, count)) / count**0.5
    return (rng.standard_normal((images, count)) * np.arange(1, count + 1) ** -0.5) @ mixed + 0.01 * seed


def by_cholesky(a: Moments, b: Moments) -> float:
    """The textbook's symmetric route, nothing cached."""
    assert a.full is not None
    assert b.full is not None
    root = np.linalg.cholesky(b.full)
    values = np.linalg.eigvalsh(root.T @ a.full @ root)
    difference = a.mean - b.mean
    trace = np.trace(a.full) + np.trace(b.full)
    return float(difference @ difference + trace - 2 * np.sqrt(values.clip(0)).sum())


def by_torch_fidelity(a: Moments, b: Moments) -> float:
    statistics = [{"mu": each.mean, "sigma": each.full} for each in (a, b)]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


ROUTES: dict[str, Callable[[Moments, Moments], float]] = {
    "ours": frechet,
    "cholesky and eigvalsh": by_cholesky,
    "torch-fidelity": by_torch_fidelity,
}


if __name__ == "__main__":
    sys.exit(main())
