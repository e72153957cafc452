"""The Fréchet step on 10,000 x 2048 features: ours, the Cholesky route it is held to, and torch-fidelity's.

    python benchmarks/frechet.py [--features 2048] [--images 10000]

CPU-seconds of one thread, best of three; the covariances are given, the reference's root is cached as in
use. Exits with 1 if ours is over twice the Cholesky route, under three times as fast as torch-fidelity, or
differs from either by more than 1e-8.
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
    given = parser.parse_args()
    a, b = (moments(features(seed, given.images, given.features)) for seed in (0, 1))
    frechet(a, b)  # the reference's root is computed here, once
    routes: dict[str, Callable[[Moments, Moments], float]] = {
        "ours": frechet,
        "cholesky and eigvalsh": by_cholesky,
        "torch-fidelity": by_torch_fidelity,
    }
    timed = {name: best_of(3, route, a, b) for name, route in routes.items()}
    for name, (seconds, value) in timed.items():
        print(f"{name:24s} {seconds:6.2f} CPU-s  {value:.12g}")
    seconds, value = timed.pop("ours")
    by_cholesky_, theirs = (timed[name][0] for name in timed)
    apart = max(abs(value / other - 1) for _, other in timed.values())
    print(
        f"ours / cholesky {seconds / by_cholesky_:.2f}, torch-fidelity / ours {theirs / seconds:.2f}, apart {apart:.1e}"
    )
    return int(seconds > 2 * by_cholesky_ or theirs < 3 * seconds or apart > 1e-8)


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


def best_of(times: int, route: Callable[[Moments, Moments], float], a: Moments, b: Moments) -> tuple[float, float]:
    taken = []
    for _ in range(times):
        began = time.process_time()
        value = route(a, b)
        taken.append(time.process_time() - began)
    return min(taken), value


if __name__ == "__main__":
    sys.exit(main())
