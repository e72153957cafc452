"""How runs converge: against curves of known shape, and against scipy's interval of a standard deviation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from analysis import tables
from analysis.render import notes
from analysis.rows import CannotShowError, load_rows
from tests.analysis.stores import losses, sweep


def curves(folder: Path, scale: dict[str, float]) -> None:
    """val_loss = scale x images^-0.25 at five points, for every run of a label."""
    rows = load_rows(folder)
    for cell in rows.study.cells:
        for number, run in enumerate(cell.runs.values()):
            factor = scale[cell.label] * (1 + 0.01 * number)
            lines = [{"images": n, "val_loss": factor * n**-0.25} for n in (100, 400, 1600, 6400, 12800)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder.parent / "runs" / run / "curve.jsonl").write_text(text)


def test_images_until_a_loss_are_those_of_a_known_curve(tmp_path: Path) -> None:
    folder = sweep(tmp_path, losses({1: [0.1, 0.1], 2: [0.1, 0.1], 4: [0.9, 0.9]}))
    curves(folder, {"M=1": 1.0, "M=2": 1.2, "M=4": 9.0})
    frame = tables.images_until(load_rows(folder), 0.14).set_index("point")
    for label, scale in (("M=1", 1.0), ("M=2", 1.2)):
        expected = [(scale * (1 + 0.01 * number) / 0.14) ** 4 for number in (0, 1)]
        assert frame.loc[label, "mean"] == pytest.approx(np.mean(expected))
        assert frame.loc[label, "runs"] == "2/2"
    assert frame.loc["M=4", "runs"] == "0/2"  # never got there: no number is made up
    assert np.isnan(frame.loc["M=4", "mean"])


def test_a_point_of_which_some_runs_got_there_has_no_mean(tmp_path: Path) -> None:
    folder = sweep(tmp_path, losses({1: [0.1, 0.1], 2: [0.1, 0.1]}))
    curves(folder, {"M=1": 1.0, "M=2": 1.49})  # at 12800 images: 0.1401 and, of the second seed, 0.1415
    frame = tables.images_until(load_rows(folder), 0.141)
    lines = frame.set_index("point")
    assert (lines.loc["M=1", "runs"], lines.loc["M=2", "runs"]) == ("2/2", "0/2")
    assert np.isnan(lines.loc["M=2", "difference"])
    assert "M=2: 1 of 2 runs got there." in notes(frame)
    early = tables.images_until(load_rows(folder), 0.45)
    assert any("at their first validation" in note for note in notes(early))
    with pytest.raises(ValueError, match="level"):
        tables.images_until(load_rows(folder), -1)


def test_a_spread_has_the_interval_of_a_normal_ones(tmp_path: Path) -> None:
    ends = [0.50, 0.53, 0.49, 0.55]
    rows = load_rows(sweep(tmp_path, losses({1: ends, 2: [0.4, 0.4, 0.4, 0.4]})))
    line = tables.stability(rows).set_index("point").loc["M=1"]
    variance = np.var(ends, ddof=1)
    low, high = 3 * variance / scipy.stats.chi2.ppf([0.975, 0.025], 3)
    assert line["spread"] == pytest.approx(np.sqrt(variance))
    assert (line["low"], line["high"]) == pytest.approx((np.sqrt(low), np.sqrt(high)))


def test_diverged_runs_are_counted_and_one_seed_has_no_spread(tmp_path: Path) -> None:
    runs = {**losses({1: [0.5, 0.51]}), (4, 0): {}, (4, 1): {"val_loss": 0.6}}
    frame = tables.stability(load_rows(sweep(tmp_path, runs, {(4, 0): "diverged"}))).set_index("point")
    assert (frame.loc["M=4", "diverged"], frame.loc["M=4", "runs"]) == (1, "1/2")
    assert np.isnan(frame.loc["M=4", "spread"])
    assert frame.loc["M=1", "diverged"] == 0


def test_a_metric_nobody_measured_is_a_sentence(tmp_path: Path) -> None:
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.51]})))
    for frame in (tables.images_until(rows, 0.2, "fid"), tables.stability(rows, "fid")):
        assert frame.empty
        assert any("fid" in note for note in notes(frame))


def test_only_what_is_named_is_compared(tmp_path: Path) -> None:
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.51], 2: [0.4, 0.41], 4: [0.3, 0.31]})))
    frame = tables.comparison(tables.against(rows, {"M=4": "M=2"}), ["val_loss"]).set_index("point")
    assert frame.loc["M=4", "difference"] == pytest.approx(-0.1)
    assert np.isnan(frame.loc["M=1", "difference"])
    for partner, told in (({"M=4": "M=3"}, "no point M=3"), ({"M=4": "M=2", "M=2": "M=1"}, "make two tables")):
        with pytest.raises(CannotShowError, match=told):
            tables.against(rows, partner)
