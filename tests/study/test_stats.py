"""Intervals against scipy and against coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from study.stats import bootstrap_interval, t_interval, wilson_interval


def test_t_interval_equals_scipy() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (495, 500)])
def test_wilson_interval_equals_scipy(hits: int, n: int) -> None:
    expected = scipy.stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, n) == pytest.approx(tuple(expected))


def test_bootstrap_is_the_generators_alone() -> None:
    """The global generator has no say, unlike in published code."""
    values = np.arange(30.0)
    np.random.seed(0)  # noqa: NPY002  # the trap
    first = bootstrap_interval(values, np.random.default_rng(1))
    np.random.seed(5)  # noqa: NPY002
    assert bootstrap_interval(values, np.random.default_rng(1)) == first
    assert bootstrap_interval(values, np.random.default_rng(2)) != first


def test_bootstrap_of_a_mean_approaches_the_t_interval() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    found = bootstrap_interval(values, np.random.default_rng(0), resamples=4000)
    assert found == pytest.approx(t_interval(values), abs=0.01)


def test_bootstrap_of_another_statistic() -> None:
    values = np.random.default_rng(0).exponential(size=200)
    low, high = bootstrap_interval(values, np.random.default_rng(0), lambda draws: np.median(draws, axis=1))
    assert low < np.median(values) < high < values.mean()


@pytest.mark.parametrize("values", [[1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_too_few_or_no_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values"):
        t_interval(values)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="hits"):
        wilson_interval(5, 4)
