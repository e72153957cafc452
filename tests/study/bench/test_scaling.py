"""Exponents and crossovers of laws written down."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from study.bench.config import Layer
from study.bench.plots import draw_scaling
from study.bench.scaling import check_axis, crossing, crossover_words, exponents, told

LENGTHS = np.array([64.0, 256.0, 1024.0, 4096.0])


def laws() -> pd.DataFrame:
    """Attention ~ L^2, an SSM ~ L that costs the same at 512; by MACs they meet at 128."""
    rows = []
    for length in LENGTHS:
        ratio = length / 512
        for name, ms, gmacs in (("ssm", length, length), ("attention", length * ratio, length * length / 128)):
            known = name == "attention"
            rows.append((name, length, ms, 0.99 * ms, 1.01 * ms, gmacs, *((ratio, 0.8 * ratio, 1.25 * ratio) if known
                         else (math.nan,) * 3), "here"))  # fmt: skip
    columns = ["series", "at", "ms", "low", "high", "gmacs", "ratio", "ratio_low", "ratio_high", "device"]
    return pd.DataFrame(rows, columns=columns)


def test_a_crossing_between_powers_is_exact_and_its_interval_too() -> None:
    ratio = LENGTHS / 512
    found = crossing(LENGTHS, ratio, 0.8 * ratio, 1.25 * ratio)
    assert found.at == pytest.approx(512)
    assert found.interval == pytest.approx((512 / 1.25, 512 / 0.8))


def test_no_crossing_is_told_as_none() -> None:
    above = crossing(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
    assert math.isnan(above.at)
    frame = laws()
    frame["ratio"] *= 1e6
    assert "nowhere from 64 to 4096 measured" in crossover_words(frame, "ssm", "attention", "length")


def test_words_give_the_measured_and_the_predicted_place() -> None:
    assert crossover_words(laws(), "ssm", "attention", "length") == (
        "attention costs what ssm costs at length 512 [410, 640] measured, 128 by MACs"
    )


def test_exponents_of_powers() -> None:
    frame = laws()
    lines = exponents(frame[frame["series"] == "attention"], "attention", "length")
    assert lines[0].startswith("attention: time ~ length^2.00 [2.00, 2.00], MACs ~ length^2.00, over length 64")
    assert len(lines) == 2


def test_the_figure_and_the_words_lie_beside_the_numbers(tmp_path: Path) -> None:
    lines = told(laws(), "length", "lengths-forward", tmp_path)
    assert (tmp_path / "lengths-forward.txt").read_text().splitlines() == lines
    assert (tmp_path / "lengths-forward.png").read_bytes().startswith(b"\x89PNG")
    draw_scaling(laws(), "length", tmp_path / "again.png")


def test_macs_of_layers_cross_where_attention_outgrows_transforms() -> None:
    """Attention spends 2 L^2 D + 4 L D^2; S4D's transforms grow as L log L: they meet once."""
    dearer = [Layer("attention", n, 64).macs().total > Layer("s4d", n, 64).macs().total for n in (4, 64, 4096)]
    assert dearer == sorted(dearer)
    assert dearer[-1]


@pytest.mark.parametrize("values", [[8, 16], [8, 8, 16], [8, 0, 16]])
def test_too_few_lengths_are_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="3 or more distinct positive integers"):
        check_axis("side", values)
