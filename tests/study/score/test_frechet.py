"""The Fréchet distance against scipy's matrix root, torch-fidelity, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from study.score.frechet import Moments, frechet, moments


def by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it is written, in float64."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = x.mean(axis=0) - y.mean(axis=0)
    return float(difference @ difference + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real))


def features(rng: np.random.Generator, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / d**0.5 + shift


@pytest.mark.parametrize(("n", "m"), [(300, 200), (5000, 4097)])
def test_equals_the_matrix_root(rng: np.random.Generator, n: int, m: int) -> None:
    x, y = features(rng, n, 40), features(rng, m, 40, 0.1)
    assert frechet(moments(x), moments(y)) == pytest.approx(by_matrix_root(x, y), rel=1e-9)


def test_equals_torch_fidelity(rng: np.random.Generator) -> None:
    x, y = features(rng, 300, 40), features(rng, 200, 40, 0.1)
    theirs = [fid_features_to_statistics(torch.from_numpy(each)) for each in (x, y)]
    expected = fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"]
    assert frechet(moments(x), moments(y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(20, 30), (20, 500), (500, 20), (50, 51)])
def test_fewer_images_than_features(rng: np.random.Generator, n: int, m: int) -> None:
    """Against the singular values of the symmetric roots' product, taken of the full covariances."""
    x, y = features(rng, n, 50), features(rng, m, 50)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root_a, root_b = (v * np.sqrt(w.clip(0)) @ v.T for w, v in (np.linalg.eigh(a), np.linalg.eigh(b)))
    difference = x.mean(axis=0) - y.mean(axis=0)
    expected = difference @ difference + np.trace(a + b) - 2 * scipy.linalg.svdvals(root_a @ root_b).sum()
    assert frechet(moments(x), moments(y)) == pytest.approx(expected, rel=1e-6)


def test_published_singular_covariance(rng: np.random.Generator) -> None:
    """Statistics without images have no deviations to fall back on."""
    x, y = features(rng, 20, 50), features(rng, 500, 50)
    published = Moments(x.mean(axis=0), 0, full=np.cov(x, rowvar=False))
    assert frechet(moments(y), published) == pytest.approx(frechet(moments(y), moments(x)), rel=1e-6)
    assert frechet(published, moments(y)) == pytest.approx(frechet(moments(y), moments(x)), rel=1e-6)


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a, b = np.array([4.0, 1.0, 0.25]), np.array([1.0, 1.0, 4.0])
    first = Moments(np.array([1.0, 0.0, 0.0]), 0, full=np.diag(a))
    second = Moments(np.zeros(3), 0, full=np.diag(b))
    assert frechet(first, second) == pytest.approx(1 + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-12)


@given(seed=st.integers(0, 2**16), n=st.sampled_from([6, 40]))
def test_is_a_distance_that_turning_does_not_change(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = features(rng, n, 10), features(rng, 30, 10, 0.5)
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    value = frechet(moments(x), moments(y))
    assert value == pytest.approx(frechet(moments(y), moments(x)), rel=1e-7)
    assert value == pytest.approx(frechet(moments(x @ turn), moments(y @ turn)), rel=1e-7)
    assert abs(frechet(moments(x), moments(x))) < 1e-6
    assert value > 0


def test_moments_are_accumulated_in_float64(rng: np.random.Generator) -> None:
    """In float32 the mean of 10,000 numbers near 100 is off by 1e-5."""
    x = (rng.standard_normal((10_000, 3)) * 0.01 + 100).astype(np.float32)
    found = moments(x)
    assert found.full is not None
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.full, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.zeros((1, 3)), "at least 2"), (np.zeros(3), "N, d"), (np.full((4, 3), np.nan), "finite")],
)
def test_bad_features(bad: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moments(bad)


def test_other_feature_counts_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"features\.d"):
        frechet(moments(features(rng, 9, 3)), moments(features(rng, 9, 4)))
