"""The iso-compute solver: within tolerance, nearest, and frank when it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import named_config
from study.cost import Budget, UnreachableError, match, parameters
from study.cost.match import count, parse
from study.cost.tracer import network
from study.results import Row, write_rows

BASES = {name: named_config(name) for name in ("dit-tiny", "diffussm-tiny", "dis-tiny")}


def _neighbours(config, budget):
    """Relative errors of every valid config a few steps around, by brute force."""
    errors = {}
    for depth in range(max(1, config.depth - 3), config.depth + 4):
        for width in range(max(1, config.width - 24), config.width + 25):
            try:
                near = replace(config, depth=depth, width=width)
            except ValueError:
                continue
            errors[depth, width] = abs(near.macs().total / 1e9 / budget.target - 1)
    return errors


@settings(max_examples=25)
@given(name=st.sampled_from(sorted(BASES)), factor=st.floats(0.3, 6.0))
def test_every_match_builds_meets_its_budget_and_is_nearest(name, factor):
    base = BASES[name]
    budget = Budget("gmacs", factor * base.macs().total / 1e9)
    try:
        best = match(base, budget, ("depth", "width"), 0.02).best
    except UnreachableError:
        return  # its own tests below
    network(best.config)
    assert abs(best.config.macs().total / 1e9 / budget.target - 1) <= 0.02
    within_span = {
        key: error
        for key, error in _neighbours(best.config, budget).items()
        if _span(base, key) <= _narrowest(base, best)
    }
    assert abs(best.error) <= min(within_span.values()) + 1e-12


def _span(base, shape):
    return max(max(a / b, b / a) for a, b in zip(shape, (base.depth, base.width), strict=True))


def _narrowest(base, best):
    return next(span for span in (2, 4, 8, 16) if span >= _span(base, (best.config.depth, best.config.width)))


@settings(max_examples=10)
@given(width=st.integers(16, 96).map(lambda n: 4 * n))
def test_a_budget_that_a_size_costs_exactly_is_met_exactly(width):
    base = named_config("diffussm-tiny", width=128)
    target = replace(base, width=width).macs().total / 1e9
    found = match(base, Budget("gmacs", target), ["width"], 0.01)
    assert found.best.config.width == width
    assert found.best.error == pytest.approx(0, abs=1e-12)


def test_m_at_equal_compute():
    target = named_config("diffussm-xl").macs().total / 1e9
    for M in (1, 2, 4):
        found = match(named_config("diffussm-xl", M=M), Budget("gmacs", target))
        assert found.best.config.M == M
        assert abs(found.best.error) <= 0.01
        assert found.closest_shape.departure <= found.best.departure


def test_parameters_of_deep_networks_are_exact_from_shallow_ones():
    for name in ("dit-s/8", "diffussm-s", "dis-s/4"):
        for depth in (11, 12):
            config = named_config(name, depth=depth)
            assert count(config) == parameters(config).total


def test_matching_parameters_and_training_flops():
    base = named_config("dit-tiny")
    target = 2.5 * parameters(base).total
    found = match(base, Budget("params", target)).best
    assert parameters(found.config).total == pytest.approx(target, rel=0.01)
    flops = match(base, Budget("train_pflops", 0.05, images=1e6)).best
    assert 6 * flops.config.macs().total * 1e6 / 1e15 == pytest.approx(0.05, rel=0.01)


def test_divisibility_is_respected():
    found = match(named_config("dit-s/2"), Budget("gmacs", 9.1), ["width"], 0.1).best
    assert found.config.width % 6 == 0


def test_an_unreachable_budget_says_by_how_much_it_is_missed():
    with pytest.raises(UnreachableError, match=r"nearest depth=12 at 2.926\d*e\+08 \(-2.45\d*%\), depth=13 at .*\+5.5"):
        match(named_config("dit-xl/2"), Budget("params", 300e6), ["depth"])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"gmacs": 1, "free": ["colour"]}, "free='colour'"),
        ({"gmacs": 1, "free": ["size"]}, "free='size'"),
        ({"gmacs": 1, "like": "dit-s/2"}, "exactly one of"),
        ({"gmacs": "many"}, "gmacs='many' is not valid: must be a number"),
        ({"gmac": 1}, "did you mean 'gmacs'"),
        ({"latency_ms": 3}, "rows=None .* benchmark rows"),
        ({"latency_ms": 3, "rows": "missing.jsonl"}, "rows='missing.jsonl' .* exists"),
        ({"latency": 3}, "did you mean 'latency_ms'"),
        ({"like": "dit-xxl/2"}, "unknown backbone 'dit-xxl/2'"),
        ({"train_pflops": 1}, "images"),
        ({"gmacs": -1}, "gmacs=-1"),
        ({"gmacs": 1, "tolerance": "200%"}, "tolerance"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_requests_are_refused_by_name(block, message):
    base = named_config("dit-s/2")
    with pytest.raises(ValueError, match=message):
        parse(block, base).solve(base)


def _benchmark(path, *runs):
    """Rows as a benchmark leaves them: one denoiser call took `ms`, for a network of so many GMACs."""
    rows = [
        Row(run=run, metric=metric, value=value, units=units, n=30, protocol="bench")
        for run, ms, gmacs in runs
        for metric, value, units in (("latency_ms", ms, "ms"), ("gmacs", gmacs, "GMAC/image"))
    ]
    write_rows(path, rows)
    return str(path)


def test_a_latency_budget_is_what_the_measured_rate_makes_of_the_macs(tmp_path):
    """6 GMACs in 12 ms are 0.5 per ms, so 24 ms are worth 12 GMACs."""
    rows = _benchmark(tmp_path / "rows.jsonl", ("a", 12.0, 6.0))
    base = named_config("dit-s/2")
    by_latency = parse({"latency_ms": 24, "rows": rows, "free": ["depth", "width"]}, base).solve(base)
    by_macs = parse({"gmacs": 12, "free": ["depth", "width"]}, base).solve(base)
    assert by_latency.config == by_macs.config
    assert by_latency.spent == pytest.approx(24, rel=0.01)


def test_a_latency_budget_wants_one_backbones_rows(tmp_path):
    base = named_config("dit-s/2")
    two = _benchmark(tmp_path / "two.jsonl", ("a", 12.0, 6.0), ("b", 10.0, 4.0))
    write_rows(tmp_path / "none.jsonl", [])
    for path, many in ((two, 2), (str(tmp_path / "none.jsonl"), 0)):
        with pytest.raises(ValueError, match=f"of one backbone, not of {many}"):
            parse({"latency_ms": 24, "rows": path}, base)
