"""Tables of a study: against statistics done another way, then whatever a store may lack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis import tables
from analysis.render import markdown, notes
from analysis.rows import Rows, load_rows
from study.comparison import Cell, Metric, Study
from tests.analysis.stores import losses, sweep

STUDY_TABLES: list[Callable[[Rows], pd.DataFrame]] = [
    tables.comparison, tables.equal_compute, tables.spent, tables.pareto, tables.curve, tables.patch_size,
    tables.hourglass, tables.hourglass_readings, tables.depth_width, tables.backbones, tables.resolution,
    tables.convergence, tables.dis_ablations, tables.search,
]  # fmt: skip
PAPER_TABLES: list[Callable[[Rows], pd.DataFrame]] = [
    lambda rows: tables.imagenet(256, rows), lambda rows: tables.imagenet(512, rows), tables.lsun,
    tables.celeba_cifar, tables.dis_imagenet, tables.dit_models,
]  # fmt: skip


def study_of(values: np.ndarray, name: str = "val_loss") -> tuple[Study, Metric]:
    """values (cells, seeds), the first cell the baseline."""
    cells = tuple(
        Cell(f"c{i}", {"x": i}, {f"s{j}": f"{i}/{j}" for j in range(values.shape[1])}) for i in range(len(values))
    )
    metric = Metric(name, "p", {f"{i}/{j}": float(v) for (i, j), v in np.ndenumerate(values)}, is_cost=False)
    return Study("s", "", cells, {cell.label: "c0" for cell in cells}, (metric,)), metric


def test_means_differences_and_p_are_scipys(tmp_path: Path) -> None:
    values = {1: [0.50, 0.53, 0.49], 2: [0.40, 0.44, 0.40]}
    frame = tables.comparison(load_rows(sweep(tmp_path, losses(values)))).set_index("point")
    expected = scipy.stats.ttest_rel(values[2], values[1])
    low, high = expected.confidence_interval(0.95)
    line = frame.loc["M=2"]
    assert line["difference"] == pytest.approx((low + high) / 2)
    assert line["difference ±"] == pytest.approx((high - low) / 2)
    assert line["p"] == pytest.approx(expected.pvalue)
    assert (line["runs"], line["verdict"]) == ("3/3", "better")
    own = scipy.stats.ttest_1samp(values[1], 0).confidence_interval(0.95)
    assert frame.loc["M=1", "mean ±"] == pytest.approx((own.high - own.low) / 2)
    assert frame.loc["M=1", "verdict"] == "baseline"


def test_the_best_of_two_seeds_is_bold_exactly_where_the_t_interval_excludes_zero() -> None:
    generator, bold = np.random.default_rng(0), 0
    for _ in range(300):
        values = generator.normal(size=(2, 2)) + generator.normal(size=(1, 2)) + np.array([[0.0], [8.0]])
        study, metric = study_of(values)
        low, high = scipy.stats.ttest_rel(values[0], values[1]).confidence_interval(0.95)
        found = tables.resolved_best(study, metric)
        assert (found is not None) == (low > 0 or high < 0)
        assert found in (None, f"c{values.mean(axis=1).argmin()}")
        bold += found is not None
    assert 0 < bold < 300


def test_noise_alone_is_seldom_bold() -> None:
    """Six equal points, two seeds: some winner in at most 5 % of studies."""
    generator = np.random.default_rng(1)
    wins = sum(tables.resolved_best(*study_of(generator.normal(size=(6, 2)))) is not None for _ in range(400))
    assert wins / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_more_is_better_where_it_is() -> None:
    values = np.array([[0.1, 0.11, 0.09], [0.9, 0.91, 0.89]])
    assert tables.resolved_best(*study_of(values, "agreement_digits8@1k")) == "c1"
    assert tables.resolved_best(*study_of(values, "fd_digits8@1k")) == "c0"


def test_a_two_seed_table_has_no_bold_cell_within_noise(tmp_path: Path) -> None:
    noisy = tables.comparison(load_rows(sweep(tmp_path / "a", losses({1: [0.5, 0.6], 2: [0.49, 0.4]}))))
    clear = tables.comparison(load_rows(sweep(tmp_path / "b", losses({1: [0.5, 0.6], 2: [0.3, 0.4001]}))))
    assert "**0" not in markdown(noisy)
    assert "within noise" in markdown(noisy)
    assert "**0.35" in markdown(clear)
    assert clear.attrs["bold"] == [(1, "mean")]


def test_a_searchs_table_is_best_first_and_keeps_its_bold_cell(tmp_path: Path) -> None:
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.51], 2: [0.3, 0.31], 4: [0.4, 0.41]})))
    frame = tables.search(rows)
    assert list(frame["point"]) == ["M=2", "M=4", "M=1"]
    assert frame.attrs["bold"] == [(0, "mean")]
    assert any("3 points were tried" in note for note in notes(frame))


def test_a_point_outside_the_constraints_is_never_first(tmp_path: Path) -> None:
    folder = sweep(tmp_path, losses({1: [0.5, 0.51], 2: [0.3, 0.31], 4: [0.4, 0.41]}))
    points = load_rows(folder).study.cells
    trials = [
        {"state": "complete", "feasible": cell.label != "M=2", "objectives": {}, "runs": list(cell.runs.values())}
        for cell in points
    ]
    (folder / "trials.json").write_text(json.dumps(trials), encoding="utf-8")
    frame = tables.search(load_rows(folder))
    assert list(frame["point"]) == ["M=4", "M=1", "M=2"]
    assert list(frame["verdict"])[1:] == ["baseline", "outside the constraints"]
    assert frame.attrs["bold"] == []


def test_the_pareto_table_goes_by_cost(tmp_path: Path) -> None:
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.5001], 2: [0.3, 0.3001], 4: [0.4, 0.4001]})))
    frame = tables.pareto(rows)
    assert list(frame["point"]) == ["M=4", "M=2", "M=1"]
    assert list(frame["front"]) == ["on the front", "on the front", "dominated"]


def test_the_pareto_table_pairs_by_seed(tmp_path: Path) -> None:
    """Seeds move all points alike by 0.2; apart from that M=2 is surely worse than the cheaper M=4."""
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.7001], 2: [0.46, 0.66], 4: [0.4, 0.6001]})))
    assert list(tables.pareto(rows)["front"]) == ["on the front", "dominated", "dominated"]


def test_without_seeds_the_pareto_table_claims_no_noise(tmp_path: Path) -> None:
    frame = tables.pareto(load_rows(sweep(tmp_path, losses({1: [9.0], 4: [0.4]}))))
    assert list(frame["front"]) == ["on the front", "beaten, by how much noise is unknown"]


def test_failed_points_are_shown_with_their_reason(tmp_path: Path) -> None:
    runs = {**losses({1: [0.5, 0.51], 2: [0.4, 0.41]}), (4, 0): {}, (4, 1): {}}
    rows = load_rows(sweep(tmp_path, runs, {(4, 0): "diverged", (4, 1): "out of memory"}))
    frame = tables.comparison(rows).set_index("point")
    assert frame.loc["M=4", "verdict"] == "no result; diverged, out of memory"
    assert frame.loc["M=4", "runs"] == "0/2"
    assert tables.spent(rows).set_index("point").loc["M=4", "missing"] == "diverged, out of memory"


def all_failed(folder: Path) -> Path:
    return sweep(folder, {(1, 0): {}, (2, 0): {}}, {(1, 0): "diverged", (2, 0): "bug"})


def missing_baseline(folder: Path) -> Path:
    return sweep(folder, {(1, 0): {}, **losses({2: [0.4, 0.41], 4: [0.5, 0.51]})}, {(1, 0): "killed"})


def mixed_protocols(folder: Path) -> Path:
    runs = losses({1: [0.5, 0.51], 2: [0.4, 0.41]})
    return sweep(folder, runs, protocols={(2, 0): "val-2", (2, 1): "val-2"})


def extra_columns(folder: Path) -> Path:
    place = sweep(folder, losses({1: [0.5, 0.51], 2: [0.4, 0.41]}), provenance={"colour": "blue"})
    for config in folder.glob("runs/*/config.yaml"):
        config.write_text(config.read_text() + f"surprise: {{deep: [1, {config.parent.name!r}]}}\n")
    return place


CASES = {
    "nothing at all": (lambda folder: folder / "nowhere", "holds no results"),
    "one run": (lambda folder: sweep(folder, losses({1: [0.5]})), "One run of demo is done"),
    "all failed": (all_failed, r"None of the 2 runs of demo has a result: .*diverged"),
    "missing baseline": (missing_baseline, "The baseline M=1 has no result"),
    "mixed protocols": (mixed_protocols, "cannot share an axis"),
    "no baseline named": (lambda f: sweep(f, losses({1: [0.5, 0.6]}), baseline=None), "names no baseline"),
    "unknown columns": (extra_columns, "reaches of 95 %"),
}


@pytest.mark.parametrize("case", CASES)
def test_whatever_a_store_lacks_is_said_in_a_sentence(tmp_path: Path, case: str) -> None:
    build, said = CASES[case]
    rows = load_rows(build(tmp_path))
    assert pd.Series([markdown(tables.comparison(rows))]).str.contains(said, regex=True).all()
    for make in (*STUDY_TABLES, *PAPER_TABLES):
        frame = make(rows)
        assert "Traceback" not in markdown(frame)
        assert len(frame) or notes(frame)


def test_a_store_without_costs_has_points_and_no_cost(tmp_path: Path) -> None:
    runs = {(1, seed): {"val_loss": 0.5 + seed / 10} for seed in (0, 1)}
    frame = tables.spent(load_rows(sweep(tmp_path, runs)))
    assert list(frame["point"]) == ["M=1"]
    assert list(frame) == ["point"]


def test_all_failed_points_are_listed(tmp_path: Path) -> None:
    frame = tables.comparison(load_rows(all_failed(tmp_path)))
    assert list(frame["verdict"]) == ["no result; diverged", "no result; bug"]


def test_a_single_run_has_no_interval_and_no_winner(tmp_path: Path) -> None:
    frame = tables.comparison(load_rows(sweep(tmp_path, losses({1: [0.5], 2: [0.1]}))))
    assert frame["mean ±"].isna().all()
    assert frame.attrs["bold"] == []
    assert list(frame["verdict"]) == ["baseline", "one seed"]


def test_mixed_protocols_are_not_averaged(tmp_path: Path) -> None:
    rows = load_rows(mixed_protocols(tmp_path))
    assert "mean" not in tables.comparison(rows, ("val_loss",))


def test_seeded_tables_are_the_same_in_every_run(tmp_path: Path) -> None:
    rows = load_rows(sweep(tmp_path, losses({1: [0.5, 0.51], 2: [0.4, 0.43]})))
    assert markdown(tables.comparison(rows)) == markdown(tables.comparison(load_rows(rows.path)))
