"""Rows as tables and figures get them: nothing lost, nothing mixed, a sentence wherever something is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis import tables
from analysis.compute import at_equal_compute, at_equal_time, common_compute
from analysis.rows import CannotShowError, load_rows
from study.results import Row, append_rows
from tests.analysis.synthetic import VAL, run_name, write_run, write_study


def test_every_row_knows_its_cell_and_seed(tmp_path: Path) -> None:
    rows = load_rows(write_study(tmp_path))
    assert rows.remarks == ()
    assert [cell.label for cell in rows.study.cells] == ["M=1", "M=2", "M=4"]
    assert len(rows.wide) == 9
    loss = rows.tidy[rows.tidy["metric"] == "val_loss"]
    assert set(zip(loss["cell"], loss["replicate"], strict=True)) == {
        (f"M={M}", f"seed={s}") for M in (1, 2, 4) for s in (0, 1, 2)
    }
    assert rows.quality() == ["val_loss", "fd_digits8@100", "agreement_digits8@100"]
    assert set(rows.curves["images"]) == {500, 1000, 2000}


def test_equal_compute_is_what_the_cheapest_spent(tmp_path: Path) -> None:
    """Losses fall as loss * 1000 / images, and cost as 12 / (place + 1): both sides in closed form."""
    rows = load_rows(write_study(tmp_path, noise=0.0))
    budget = 6 * 2000 * 4.0 / 1e6
    assert common_compute(rows, "val_loss") == pytest.approx(budget)
    found = at_equal_compute(rows, "val_loss").values
    for place, M in enumerate((1, 2, 4)):
        images = budget * 1e6 / 6 / (12.0 / (place + 1))
        loss = 1 + 0.1 * place
        assert found[run_name("ablate_M", M, 0)] == pytest.approx(loss * 1000 / images)


def test_equal_time_is_what_the_quickest_took(tmp_path: Path) -> None:
    """2000 images of the quickest point take a second: the others have seen 1000 and 1600 by then."""
    rows = load_rows(write_study(tmp_path, noise=0.0))
    seconds = {"M=1": 1e-3, "M=2": 1 / 1600, "M=4": 1 / 2000}
    found = at_equal_time(rows, "val_loss", seconds).values
    for loss, images, M in ((1.0, 1000, 1), (1.1, 1600, 2), (1.2, 2000, 4)):
        assert found[run_name("ablate_M", M, 0)] == pytest.approx(loss * 1000 / images)
    with pytest.raises(CannotShowError, match=r"No time per image is known for M=2 of ablate_M\."):
        at_equal_time(rows, "val_loss", {"M=1": 1e-3, "M=4": 5e-4})
    shown = tables.equal_time(rows, seconds)
    assert list(shown["point"]) == ["M=1", "M=2", "M=4"]
    assert "Images/s as benchmarked alone: M=1 1000, M=2 1600, M=4 2000." in str(shown.attrs)
    assert tables.equal_time(rows, {}).empty


def test_a_run_too_dear_for_the_common_budget_is_said_so(tmp_path: Path) -> None:
    rows = load_rows(write_study(tmp_path, values=(1, 2, 3, 4, 5, 6)))
    with pytest.raises(CannotShowError, match=r"lower train.validate_every"):
        at_equal_compute(rows, "val_loss")


def test_protocols_that_not_all_runs_share_are_refused(tmp_path: Path) -> None:
    rows = load_rows(write_study(tmp_path, protocols={1: VAL, 2: "val-other-11111111"}))
    with pytest.raises(CannotShowError, match=r"2 protocols that cannot share an axis: .* \(6 runs\), .* \(3 runs\)"):
        rows.metric("val_loss")


def test_a_protocol_that_all_runs_share_is_chosen(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for run in (tmp_path / "runs").iterdir():
        append_rows(
            run / "rows.jsonl", [Row(run=run.name, metric="val_loss", value=9.0, units="", n=1, protocol="ema2")]
        )
    assert load_rows(folder).metric("val_loss").protocol == VAL


def test_a_metric_that_was_not_measured_names_those_that_were(tmp_path: Path) -> None:
    with pytest.raises(CannotShowError, match=r"fid was not measured in ablate_M; there are val_loss, fd_digits8"):
        load_rows(write_study(tmp_path)).metric("fid")


@pytest.mark.parametrize("what", ["absent", "empty store", "empty runs", "plan alone", "damaged plan"])
def test_what_holds_nothing_is_a_sentence(tmp_path: Path, what: str) -> None:
    folder = tmp_path
    if what == "absent":
        folder = tmp_path / "nowhere"
    elif what == "empty runs":
        (tmp_path / "runs").mkdir()
    elif what != "empty store":
        folder = write_study(tmp_path)
        if what == "plan alone":
            shutil.rmtree(tmp_path / "runs")
        else:
            (folder / "plan.json").write_text("{", encoding="utf-8")
    rows = load_rows(folder)
    assert len(rows.remarks) == 1
    assert rows.tidy.empty
    assert rows.wide.empty
    with pytest.raises(CannotShowError):
        rows.metric("val_loss")


def test_a_damaged_row_costs_its_run_alone(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    (tmp_path / "runs" / run_name("ablate_M", 2, 1) / "rows.jsonl").write_text('{"run": 1}\n', encoding="utf-8")
    rows = load_rows(folder)
    assert len(rows.metric("val_loss").values) == 8
    assert "1 of 9 runs of ablate_M have no result" in rows.remarks[0]
    assert "not a result row" in rows.remarks[0]


def test_failures_are_counted_and_named(tmp_path: Path) -> None:
    lost = {run_name("ablate_M", 2, seed): "diverged" for seed in (0, 1, 2)}
    rows = load_rows(write_study(tmp_path, failed=lost))
    assert rows.remarks == ("3 of 9 runs of ablate_M have no result: diverged (3).",)
    assert rows.missing(rows.study.cells[1]) == "diverged (3)"
    assert rows.missing(rows.study.cells[0]) == ""


def test_all_failed_one_run_and_no_baseline_are_said(tmp_path: Path) -> None:
    runs = {run_name("ablate_M", M, 0): "out of memory" for M in (1, 2, 4)}
    rows = load_rows(write_study(tmp_path / "a", seeds=(0,), failed=runs))
    assert rows.remarks == ("None of the 3 runs of ablate_M has a result: out of memory (3).",)
    rows = load_rows(write_study(tmp_path / "b", values=(1,), seeds=(0,), baseline={}))
    assert any("One run" in remark for remark in rows.remarks)
    assert any("no baseline" in remark for remark in rows.remarks)
    lost = {run_name("ablate_M", 1, seed): "diverged" for seed in (0, 1, 2)}
    rows = load_rows(write_study(tmp_path / "c", failed=lost))
    assert "The baseline M=1 has no result: differences to it are left out." in rows.remarks


def test_a_store_without_a_plan_makes_cells_of_what_differs(tmp_path: Path) -> None:
    for M, seed in ((1, 0), (1, 1), (2, 0)):
        write_run(tmp_path, f"r{M}{seed}", {"backbone.M": M, "notes.colour": "red"}, seed, 1.0, 1.0)
    rows = load_rows(tmp_path)
    assert {cell.label: len(cell.runs) for cell in rows.study.cells} == {"M=1": 2, "M=2": 1}
    assert rows.metric("val_loss").values == {"r10": 1.0, "r11": 1.0, "r20": 1.0}
