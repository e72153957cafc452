"""Figures: drawn from any rows, the same bytes twice, nothing on top of anything else."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.figures.costs import gflops_vs_resolution, published_points, resolution_costs, time_vs_resolution
from analysis.figures.papers import dis_panels, fid_vs_gflops, hourglass, model_scaling
from analysis.figures.pictures import cut, sample_grid, strips
from analysis.figures.points import front_of, points, tradeoff
from analysis.figures.scaling import by_value, power_law
from analysis.figures.search import importances, search_history, slices
from analysis.figures.training import loss_by_noise, loss_curves, points_at_equal_compute
from analysis.published import published
from analysis.rows import Rows, load_rows
from analysis.style import Label, apart, describe, encode, label_points, log_ticks, look
from study.comparison import mean_of
from tests.analysis.synthetic import run_name, write_study

OF_A_STUDY: dict[str, Callable[[Rows], Figure]] = {
    "points": lambda rows: points(rows, "val_loss"),
    "tradeoff": lambda rows: tradeoff(rows, "val_loss"),
    "loss_curves": loss_curves,
    "equal compute": lambda rows: points_at_equal_compute(rows, "val_loss"),
    "loss_by_noise": loss_by_noise,
    "power_law": power_law,
    "by_value": lambda rows: by_value(rows, "val_loss", "backbone.M"),
    "samples": lambda rows: sample_grid(strips(rows)),
    "hourglass": lambda rows: hourglass(published(), rows),
    "model_scaling": lambda rows: model_scaling(published(), rows),
    "dis": lambda rows: dis_panels({"depth": rows}),
}
MEASURED = pd.DataFrame(
    {"series": ["dit", "dit", "ssm", "ssm"], "side": [8, 16, 8, 16], "ms": [1.0, 5, 2, 5.1], "low": [0.9, 4, 1.8, 4.9],
     "high": [1.1, 6, 2.2, 5.3], "device": "a CPU"}
)  # fmt: skip
TRIALS = pd.DataFrame(
    {"trial": range(4), "value": [3.0, 2, 4, 1], "state": ["complete", "complete", "pruned", "failed"]}
)
DIALS = pd.DataFrame(
    {"key": ["train.lr", "backbone.M"], "importance": [0.7, 0.3], "low": [0.6, 0.2], "high": [0.8, 0.4]}
)
SETTINGS = pd.DataFrame(
    {
        "trial": range(4),
        "value": [3.0, 2, 4, 1],
        "backbone": ["dit", "dit", "ssm", "ssm"],
        "train.lr": [1e-4, 1e-3, 1e-2, 2e-3],
        "backbone.skip": ["none", "long", "none", "long"],
        "backbone.M": [1, 2, 2, 4],
    }
)
OF_NO_STUDY: dict[str, Callable[[], Figure]] = {
    "gflops": lambda: gflops_vs_resolution(resolution_costs(), published_points(published())),
    "fid": lambda: fid_vs_gflops(published()),
    "hourglass alone": lambda: hourglass(published()),
    "dis alone": lambda: dis_panels({}),
    "time": lambda: time_vs_resolution(MEASURED),
    "search": lambda: search_history(TRIALS),
    "importances": lambda: importances(DIALS),
    "slices": lambda: slices(SETTINGS),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return load_rows(write_study(tmp_path_factory.mktemp("study")))


def texts(figure: Figure) -> list[Text]:
    """All that is drawn: without ticks out of view, nor the axis of axes that hold a sentence."""
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    unseen = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in _unseen(axes, axis)}
    return [text for text in found if id(text) not in unseen]


def _unseen(axes: Axes, axis: Axis) -> list[Text]:
    if not axes.axison:
        return axis.findobj(Text)
    low, high = sorted(axis.get_view_interval())
    slack = (high - low) * 1e-6
    ticks = [tick for tick in axis.get_major_ticks() if not low - slack <= tick.get_loc() <= high + slack]
    return [text for tick in ticks for text in (tick.label1, tick.label2)]


def check_nothing_overlaps(figure: Figure) -> None:
    with look():
        figure.draw_without_rendering()
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    page = figure.bbox
    for name, box in boxes:
        inside = page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        assert inside, f"{name!r} is cut off"
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9)), f"{one!r} lies on {other!r}"


@pytest.mark.parametrize("name", OF_A_STUDY)
def test_no_word_lies_on_another_or_is_cut_off(study: Rows, name: str) -> None:
    check_nothing_overlaps(OF_A_STUDY[name](study))


@pytest.mark.parametrize("name", OF_NO_STUDY)
def test_nor_in_figures_without_a_study(name: str) -> None:
    check_nothing_overlaps(OF_NO_STUDY[name]())


@pytest.mark.parametrize("name", OF_A_STUDY)
@pytest.mark.parametrize("fault", ["empty", "one run", "all failed", "one failed", "mixed", "baseline failed"])
def test_any_rows_give_a_figure_or_a_sentence(tmp_path: Path, name: str, fault: str) -> None:
    lost = {run_name("ablate_M", M, seed): "diverged" for M in (1, 2, 4) for seed in (0, 1, 2)}
    folder = {
        "empty": lambda: tmp_path,
        "one run": lambda: write_study(tmp_path, values=(2,), seeds=(0,), baseline={}),
        "all failed": lambda: write_study(tmp_path, failed=lost),
        "one failed": lambda: write_study(tmp_path, failed={run_name("ablate_M", 2, 0): "killed"}),
        "mixed": lambda: write_study(tmp_path, protocols={2: "val-other-11111111"}),
        "baseline failed": lambda: write_study(tmp_path, failed={k: v for k, v in lost.items() if "-1-" in k}),
    }[fault]()
    figure = OF_A_STUDY[name](load_rows(folder))
    assert encode(figure)[:4] == b"\x89PNG"
    said = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    if fault == "mixed" and name not in ("samples",):
        assert "cannot share an axis" in said
    if fault == "all failed":
        assert "diverged" in said
    if fault == "empty" and name not in ("samples",):
        assert "holds no results" in said


def test_the_failed_cell_is_in_the_figure_with_its_reason(tmp_path: Path) -> None:
    lost = {run_name("ablate_M", 4, seed): "out of memory" for seed in (0, 1, 2)}
    figure = points(load_rows(write_study(tmp_path, failed=lost)), "val_loss")
    said = [text.get_text() for text in figure.findobj(Text)]
    assert "missing: out of memory (3)" in said
    assert "M=4" in said


def test_what_is_drawn_is_what_was_measured(study: Rows) -> None:
    """The mean of every point, and 'within noise' nowhere: steps of 0.1 against a noise of 0.001."""
    figure = points(study, "val_loss")
    drawn = {float(x) for line in figure.axes[0].lines for x in line.get_xdata()}
    for cell in study.study.cells:
        estimate = mean_of(cell, study.metric("val_loss"))
        assert estimate is not None
        assert estimate.mean in drawn
    said = " ".join(text.get_text() for text in figure.axes[1].texts)
    assert "+0.0998 +0.2" in said
    assert "within noise" not in said


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_figure_is_the_same_bytes(study: Rows, kind: str) -> None:
    first, second = (encode(points(study, "val_loss"), kind) for _ in range(2))  # type: ignore[arg-type]
    assert first == second


def test_the_description_follows_the_numbers(study: Rows, tmp_path: Path) -> None:
    other = load_rows(write_study(tmp_path, noise=0.002))
    assert describe(points(study, "val_loss")) == describe(points(study, "val_loss"))
    assert describe(points(study, "val_loss")) != describe(points(other, "val_loss"))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(1, 20))
def test_labels_are_moved_apart_in_order_and_no_further_than_need_be(centres: list[float], height: float) -> None:
    heights = np.full(len(centres), height)
    placed = apart(np.array(centres), heights)
    order = np.argsort(centres, kind="stable")
    assert (np.diff(placed[order]) >= height - 1e-6).all()
    assert abs(float(np.mean(placed) - np.mean(centres))) < 1e-6
    if (np.diff(np.sort(centres)) >= height).all():
        assert np.allclose(placed, centres)


@given(st.floats(1e-6, 1e6), st.floats(1.01, 1e6))
def test_logarithmic_ticks_are_few_and_in_view(low: float, times: float) -> None:
    ticks = log_ticks(low, low * times)
    assert 1 <= len(ticks) <= 7
    assert all(low <= tick <= low * times for tick in ticks)


def test_the_front_by_hand() -> None:
    assert front_of([1, 2, 3, 4], [5, 3, 4, 1], higher=False) == [0, 1, 3]
    assert front_of([1, 2, 3, 4], [1, 3, 2, 3], higher=True) == [0, 1]


def test_costs_by_resolution_are_the_configs_own_and_near_the_published() -> None:
    costs = resolution_costs().set_index(["series", "side"])["gmacs"]
    printed = published_points(published()).set_index(["series", "side"])["gmacs"]
    assert costs["DiT, P=2", 256] == pytest.approx(printed["DiT, P=2", 256], rel=0.005)
    assert costs["DiT, P=2", 512] == pytest.approx(printed["DiT, P=2", 512], rel=0.005)
    assert printed["DiffuSSM, P=1, M=2", 256] == pytest.approx(1.85e11 / 660e6)
    length = 1024  # attention instead of the state space adds 2 D L^2 per layer, and D^2 terms
    longer = costs["attention, P=1, M=2", 512] - 4 * costs["attention, P=1, M=2", 256]
    assert longer == pytest.approx(29 * 2 * 1152 * (16 - 4) * length**2 / 1e9, rel=0.01)


def test_a_grid_is_cut_into_the_images_it_was_made_of(study: Rows) -> None:
    images = cut(study.directory(run_name("ablate_M", 1, 2)).grid)
    assert images.shape == (20, 32, 32, 3)
    assert [int(image.max()) for image in images] == [2 + index for index in range(20)]
    assert [int(image.min()) for image in images] == [2 + index for index in range(20)]
    (first, *_) = strips(study)
    assert first.images is not None
    assert len(first.images) == 10  # the classes of digits8


def test_times_of_two_devices_are_refused() -> None:
    figure = time_vs_resolution(MEASURED.assign(device=["a CPU", "a GPU"] * 2))
    assert "share no axis" in figure.axes[0].texts[0].get_text().replace("\n", " ")
    assert "study.bench" in time_vs_resolution(MEASURED.iloc[:0]).axes[0].texts[0].get_text()


def test_a_slice_shows_every_trial_where_its_dial_stood_in_its_familys_colour() -> None:
    panels = [axes for axes in slices(SETTINGS).axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["train.lr", "backbone.skip", "backbone.M"]
    rate, skip, _ = panels
    assert rate.get_xscale() == "log"
    assert [list(line.get_xdata()) for line in rate.lines] == [[1e-4, 1e-3], [1e-2, 2e-3]]
    assert [list(line.get_ydata()) for line in rate.lines] == [[3, 2], [4, 1]]
    assert [text.get_text() for text in skip.get_xticklabels()] == ["long", "none"]
    assert [list(line.get_xdata()) for line in skip.lines] == [[1, 0], [1, 0]]
    (alone,) = slices(SETTINGS.drop(columns=["backbone", "backbone.skip", "backbone.M"])).axes
    assert len(alone.lines) == 1
    assert "no slice" in slices(SETTINGS[["trial", "value"]]).axes[0].texts[0].get_text()


def test_best_so_far_follows_what_is_better() -> None:
    trials = pd.DataFrame({"trial": [0, 1, 2], "value": [0.5, 0.8, 0.2], "state": ["complete"] * 3})
    for metric, best in (("agreement_digits8@100", [0.5, 0.8, 0.8]), ("val_loss", [0.5, 0.5, 0.2])):
        (axes,) = search_history(trials, metric).axes
        steps = axes.lines[1]
        assert list(steps.get_ydata()) == best


def test_names_that_would_cross_the_frame_are_left_out_and_counted() -> None:
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0.02, 0.5], [0.5, 0.5], "o", linestyle="")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    names = [Label(0.02, 0.5, "a name far wider than all there is " * 3), Label(0.5, 0.5, "short")]
    assert label_points(axes, names, all_of_them=False) == 1
    assert [text.get_text() for text in axes.texts] == ["short"]
