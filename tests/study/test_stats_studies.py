"""Differences, corrections, aggregates, fits: against statsmodels, scipy or a closed form; coverage by simulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from study.stats import (
    Interval,
    at_equal_compute,
    bootstrap_interval,
    first_reached,
    holm,
    iqm,
    minimum_detectable_difference,
    paired_difference,
    pareto_front,
    performance_profile,
    power_law,
    stratified_bootstrap_interval,
    t_interval,
    wilson_interval,
)

Generator = np.random.Generator


def test_a_paired_difference_is_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(size=(2, 6))
    found, expected = paired_difference(ours, theirs), scipy.stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.mean, found.n) == (pytest.approx((ours - theirs).mean()), 6)


def test_differences_without_any_noise() -> None:
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p == 0
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_is_statsmodels(p: list[float]) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize(("pairs", "power"), [(3, 0.8), (5, 0.8), (5, 0.95), (20, 0.5)])
def test_the_detectable_difference_is_statsmodels(pairs: int, power: float) -> None:
    tests = pytest.importorskip("statsmodels.stats.power")
    effect = tests.TTestPower().solve_power(nobs=pairs, alpha=0.05, power=power, alternative="two-sided")
    found = minimum_detectable_difference(0.3, pairs, power=power)
    assert found == pytest.approx(float(effect) * 0.3 * np.sqrt(2), rel=1e-4)


def test_the_detectable_difference_is_found_as_often_as_said() -> None:
    least = minimum_detectable_difference(1.0, 5)
    noise = np.random.default_rng(1).normal(size=(20_000, 5)) * np.sqrt(2) + least
    t = noise.mean(axis=1) / noise.std(axis=1, ddof=1) * np.sqrt(5)
    assert (np.abs(t) > scipy.stats.t.ppf(0.975, 4)).mean() == pytest.approx(0.8, abs=0.01)


def test_pooling_and_seeds_lower_the_detectable_difference() -> None:
    alone, pooled, many = (
        minimum_detectable_difference(1, n, degrees) for n, degrees in ((2, None), (2, 10), (8, None))
    )
    assert alone > pooled > many > 0
    with pytest.raises(ValueError, match="pairs"):
        minimum_detectable_difference(1, 1)


def test_the_iqm_is_scipys_trimmed_mean() -> None:
    scores = np.random.default_rng(2).normal(size=(4, 7, 5))
    expected = [scipy.stats.trim_mean(table.ravel(), 0.25) for table in scores]
    assert iqm(scores) == pytest.approx(expected)


def test_the_iqm_ignores_one_diverged_run() -> None:
    scores = np.arange(20.0).reshape(4, 5)
    diverged = scores.copy()
    diverged[3, 4] = 1e9
    assert iqm(diverged) == iqm(scores) == pytest.approx(9.5)


def test_a_profile_is_the_empirical_distribution() -> None:
    scores = np.random.default_rng(3).normal(size=(6, 4))
    at = np.linspace(-2, 2, 9)
    profile = performance_profile(scores, at, np.random.default_rng(0), resamples=200)
    assert profile.share == pytest.approx(scipy.stats.ecdf(scores.ravel()).cdf.evaluate(at))
    assert (profile.low <= profile.share).all()
    assert (profile.share <= profile.high).all()
    assert np.diff(profile.share).min() >= 0


def test_pareto_front_equals_the_definition() -> None:
    points = np.random.default_rng(4).integers(0, 6, size=(40, 2)).astype(float)
    front = pareto_front(points[:, 0], points[:, 1])
    for index, (cost, loss) in enumerate(points):
        beaten = any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in points)
        assert front.by_mean[index] == (not beaten)


def test_a_point_within_noise_is_not_called_dominated() -> None:
    cost, loss = [1.0, 2.0, 3.0], [1.0, 1.1, 3.0]
    assert pareto_front(cost, loss, [0.5, 0.5, 0.5]).words() == ["on the front", "within noise of it", "dominated"]
    assert pareto_front(cost, loss).words() == ["on the front", "dominated", "dominated"]
    assert pareto_front(cost, loss, [np.nan] * 3).words()[2] == "within noise of it"


def test_a_power_law_is_statsmodels_line_through_logarithms() -> None:
    api = pytest.importorskip("statsmodels.api")
    compute = np.geomspace(1, 100, 8)
    loss = 3 * compute**-0.2 * np.exp(np.random.default_rng(5).normal(size=8) * 0.02)
    found = power_law(compute, loss)
    fit = api.OLS(np.log(loss), api.add_constant(np.log(compute))).fit()
    assert found.exponent == pytest.approx(fit.params[1])
    assert found.exponent_interval == pytest.approx(tuple(fit.conf_int()[1]))
    at = np.array([0.5, 10.0, 300.0])
    summary = fit.get_prediction(api.add_constant(np.log(at))).summary_frame()
    line, low, high = found.at(at)
    assert np.log(line) == pytest.approx(summary["mean"])
    assert np.log(low) == pytest.approx(summary["mean_ci_lower"])
    assert np.log(high) == pytest.approx(summary["mean_ci_upper"])


def test_an_exact_power_law_is_found_exactly() -> None:
    compute = np.array([1.0, 10.0, 100.0])
    found = power_law(compute, 7 * compute**-0.5)
    assert (found.exponent, found.scale) == (pytest.approx(-0.5), pytest.approx(7))


def test_between_the_points_of_a_power_law_its_own_values() -> None:
    compute = np.array([100.0, 1.0, 10.0])
    loss = 2 * compute**-0.3
    assert at_equal_compute(compute, loss, 37.0) == pytest.approx(2 * 37.0**-0.3)
    assert at_equal_compute(compute, loss, 100.0) == pytest.approx(2 * 100.0**-0.3)
    assert np.isnan(at_equal_compute(compute, loss, 101.0))
    assert np.isnan(at_equal_compute(compute, loss, 0.99))


def test_where_a_loss_is_first_reached_is_the_inverse_of_the_loss_there() -> None:
    compute = np.array([100.0, 1.0, 10.0])
    loss = 2 * compute**-0.3
    for wanted in (1.9, 1.2, 0.51):
        there = first_reached(compute, loss, wanted)
        assert there == pytest.approx((wanted / 2) ** (-1 / 0.3))
        assert at_equal_compute(compute, loss, there) == pytest.approx(wanted)
    assert first_reached([1, 2, 3, 4], [4.0, 2.0, 3.0, 1.0], 2.0) == pytest.approx(2.0)  # the first time, not the last
    assert np.isnan(first_reached(compute, loss, 0.4))
    assert np.isnan(first_reached(compute, loss, 2.5))  # below from the start: where is not known


def test_nonsense_is_refused() -> None:
    for call in (
        partial(paired_difference, [1.0, 2.0], [1.0]),
        partial(holm, [0.5, 1.5]),
        partial(power_law, [1.0, 2.0], [1.0, 2.0]),
        partial(power_law, [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]),
        partial(power_law, [1.0, 2.0, 3.0], [1.0, -2.0, 3.0]),
        partial(at_equal_compute, [1.0, 0.0], [1.0, 1.0], 0.5),
        partial(first_reached, [1.0, 2.0], [1.0, 0.5], 0.0),
        partial(stratified_bootstrap_interval, [[1.0], [2.0]], np.random.default_rng(0)),
        partial(performance_profile, [[1.0], [2.0]], [0.0], np.random.default_rng(0)),
        partial(pareto_front, [1.0], [1.0, 2.0]),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


def test_seeded_results_are_the_same_in_every_run() -> None:
    """Figures computed once: numpy promises the streams of a PCG64 generator and of `integers`."""
    scores = np.random.default_rng(6).normal(size=(5, 4))
    found = stratified_bootstrap_interval(scores, np.random.default_rng(7), resamples=500)
    assert found == stratified_bootstrap_interval(scores, np.random.default_rng(7), resamples=500)
    assert found != stratified_bootstrap_interval(scores, np.random.default_rng(8), resamples=500)
    bands = [performance_profile(scores, [0.0], np.random.default_rng(7), resamples=500).high for _ in range(2)]
    assert bands[0] == bands[1]


def share_covered(truth: float, once: Callable[[Generator], Interval], studies: int) -> float:
    generator = np.random.default_rng(11)
    intervals = np.array([once(generator) for _ in range(studies)])
    return float(((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean())


EFFECTS = np.arange(8.0)[:, None]  # settings of different difficulty


def fitted(generator: Generator) -> Interval:
    compute = np.geomspace(1, 50, 6)
    return power_law(compute, 3 * compute**-0.2 * np.exp(generator.normal(size=6) * 0.05)).exponent_interval


def line_at_20(generator: Generator) -> Interval:
    compute = np.geomspace(1, 50, 6)
    _, low, high = power_law(compute, 3 * compute**-0.2 * np.exp(generator.normal(size=6) * 0.05)).at([20.0])
    return float(low[0]), float(high[0])


def profiled(generator: Generator) -> Interval:
    found = performance_profile(generator.normal(size=(12, 5)), [0.3], generator, resamples=400)
    return float(found.low[0]), float(found.high[0])


@pytest.mark.parametrize(
    ("truth", "once", "studies"),
    [
        (0.0, lambda g: t_interval(g.normal(size=3)), 3000),
        (0.0, lambda g: t_interval(g.normal(size=5)), 3000),
        (0.5, lambda g: paired_difference(g.normal(size=4) + 0.5, g.normal(size=4)).interval, 3000),
        (0.3, lambda g: wilson_interval(int(g.binomial(60, 0.3)), 60), 3000),
        (0.0, lambda g: bootstrap_interval(g.normal(size=80), g, resamples=600), 1200),
        (
            float(EFFECTS.mean()),
            lambda g: stratified_bootstrap_interval(
                EFFECTS + g.normal(size=(8, 5)), g, lambda draws: draws.mean(axis=(1, 2)), resamples=600
            ),
            1200,
        ),
        (0.0, lambda g: stratified_bootstrap_interval(g.normal(size=(10, 5)), g, resamples=600), 1200),
        (-0.2, fitted, 3000),
        (3 * 20.0**-0.2, line_at_20, 3000),
        (float(scipy.stats.norm.cdf(0.3)), profiled, 1200),
    ],
    ids=["t-3", "t-5", "paired", "wilson", "bootstrap", "strata-mean", "strata-iqm", "exponent", "line", "profile"],
)
def test_intervals_cover_the_truth_as_often_as_promised(
    truth: float, once: Callable[[Generator], Interval], studies: int
) -> None:
    assert 0.93 <= share_covered(truth, once, studies) <= 0.97


def test_holm_keeps_the_promise_over_a_whole_study() -> None:
    """Five settings equal to their baseline: an error anywhere in at most 5 % of studies."""
    generator, errors = np.random.default_rng(12), 0
    for _ in range(600):
        runs = generator.normal(size=(6, 4))
        errors += min(holm([paired_difference(row, runs[0]).p for row in runs[1:]])) < 0.05
    assert errors / 600 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
