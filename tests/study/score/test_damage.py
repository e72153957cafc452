"""Damage is seen at least as early, and as far above the noise, as by a plain classifier's last hidden layer.

The bounds are what such a network reaches that was trained without noise, with 45,000 parameters for digits8
and 95,000 for glyphs16.
"""

from __future__ import annotations

import pytest

from study.score.damage import Sensitivity, Sizes, sensitivities, show

Seen = dict[tuple[str, str], Sensitivity]

# (metric, damage): (seen at the latest from, worst over real at the least)
DIGITS = {
    ("fd", "noise"): (0.1, 10),
    ("fd", "blur"): (0.45, 122),
    ("fd", "drop"): (1, 128),
    ("fd", "swap"): (0.1, 13),
    ("fd", "blocks"): (0.4, 7.5),
    ("fd", "contrast"): (0.05, 84),
    ("kd", "noise"): (0.1, 1),
    ("kd", "blur"): (0.45, 1),
    ("kd", "drop"): (1, 1),
    ("kd", "swap"): (0.1, 1),
    ("kd", "blocks"): (0.2, 1),
    ("kd", "contrast"): (0.05, 1),
}
GLYPHS = {
    ("fd", "noise"): (0.02, 1050),
    ("fd", "blur"): (0.45, 250),
    ("fd", "drop"): (1, 250),
    ("kd", "noise"): (0.02, 1),
    ("kd", "blur"): (0.45, 1),
    ("kd", "drop"): (1, 1),
}


@pytest.fixture(scope="module")
def digits() -> Seen:
    sizes = Sizes(500, 1000, real=8, damaged=1)
    return {(one.metric, one.damage): one for one in sensitivities("digits8", sizes)}


@pytest.fixture(scope="module")
def glyphs() -> Seen:
    sizes = Sizes(1000, 5000, real=8, damaged=1)
    return {(one.metric, one.damage): one for one in sensitivities("glyphs16", sizes)}


@pytest.mark.parametrize("case", DIGITS)
def test_digits(digits: Seen, case: tuple[str, str]) -> None:
    check(digits[case], *DIGITS[case])


@pytest.mark.parametrize("case", GLYPHS)
def test_glyphs(glyphs: Seen, case: tuple[str, str]) -> None:
    check(glyphs[case], *GLYPHS[case])


def check(found: Sensitivity, latest: float, least: float) -> None:
    assert found.detected is not None
    assert found.detected <= latest
    assert found.dynamic_range >= least
    assert found.monotone


def test_a_barely_visible_blur_is_not_seen(digits: Seen) -> None:
    """0.3 pixels: the kernel is nearly one pixel. Detection that fires here would fire on anything."""
    assert digits["fd", "blur"].detected == 0.45


def test_table(digits: Seen) -> None:
    table = show("digits8", Sizes(500, 1000), list(digits.values()))
    assert table.row_count == 12
