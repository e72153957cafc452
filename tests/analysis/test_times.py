"""Measured times as tables, sentences, figures and a page: every number beside its n and interval."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis.figures.costs import network_times, time_vs_length, time_vs_resolution
from analysis.machine_page import main
from analysis.style import describe
from analysis.time_tables import measured_lengths, measured_networks, measured_ratios, measured_sides
from analysis.times import load_cells, load_lengths, load_times, seconds_per_image
from study.atomic import write_json
from study.results import Row, write_rows

MODES = {"forward": "latency", "train": "train_step"}


def write_cell(machine: Path, subject: str, mode: str, baseline: str, numbers: dict[str, float], **told: str) -> None:
    origin = {"subject": subject, "shape": "8x8", "mode": mode, "batch": "1", "dtype": "fp32", "compile": "False"}
    origin |= {
        "threads": "1",
        "device": "cpu",
        "cpu": "a CPU",
        "baseline": baseline,
        "commit": "abc",
        "torch": "2",
    } | told
    cell = re.sub(r"\W+", "-", f"{subject} {mode} {origin['shape']}")
    rows = [Row(run=cell, metric=metric, value=value, units="", n=30, protocol="bench-1", provenance=origin,
                interval=(0.9 * value, 1.1 * value) if metric.endswith(("_ms", "ratio")) else None)
            for metric, value in numbers.items()]  # fmt: skip
    (machine / "runs" / cell).mkdir(parents=True)
    write_rows(machine / "runs" / cell / "rows.jsonl", rows)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    folder = tmp_path / "bench" / "a-cpu"
    for mode, stem in MODES.items():
        write_cell(folder, "dit-tiny", mode, "", {f"{stem}_ms": 2.0, "gmacs_per_image": 0.5})
        fast = {f"{stem}_ms": 3.0, f"{stem}_ratio": 1.5, "gmacs_per_image": 1.0, "growth_mib": 12.0}
        write_cell(folder, "dis-tiny", mode, "dit-tiny", fast)
    write_cell(folder, "unet-tiny", "forward", "dit-tiny", {"latency_rejected_spread": 0.4, "gmacs_per_image": 1.0})
    write_cell(folder, "unet-tiny", "train", "dit-tiny", {"train_step_rejected_spread": 0.3, "gmacs_per_image": 1.0})
    write_cell(folder, "dit-tiny", "forward", "", {"latency_ms": 9.0}, shape="16x16")  # of a series over sides
    for join, L, ratio in (("sum", 64, 7.0), ("sum", 256, 5.0), ("concat", 256, 4.5)):
        ratios = {"train_step_ratio": ratio, "train_step_cpu_ratio": ratio}
        batch = "64" if L == 64 else "32"
        write_cell(folder, "s4d-textbook", "train", "s4d", ratios, shape=f"L={L} D=384 N=64 {join}", batch=batch)
    write_json(folder / "machine.json", {})
    columns = ["series", "side", "ms", "low", "high", "gmacs", "ratio", "ratio_low", "ratio_high", "device"]
    none = float("nan")
    lines = [("b", side, side, 0.9 * side, 1.1 * side, side, none, none, none, "a CPU") for side in (8, 16, 32)]
    lines += [("a", side, 2 * side, 1.8 * side, 2.2 * side, side, side / 16.1, side / 18, side / 14, "a CPU")
              for side in (8, 16, 32)]  # fmt: skip
    frame = pd.DataFrame(lines, columns=columns)
    frame.to_csv(folder / "resolution.csv", index=False)
    frame.rename(columns={"side": "length"}).to_csv(folder / "lengths-forward.csv", index=False)
    return folder


def test_networks_stand_beside_their_baseline_with_ratio_and_macs(machine: Path) -> None:
    table = measured_networks(load_cells(machine))
    assert list(table["network"]) == ["dit-tiny", "dis-tiny", "unet-tiny"] * 2
    assert list(table["ms [95 %]"])[:3] == ["2 [1.8, 2.2]", "3 [2.7, 3.3]", "rejected, IQR 40%"]
    assert list(table["ratio [95 %]"])[:3] == ["–", "1.5 [1.35, 1.65]", "–"]
    assert list(table["by MACs"])[1] == 2
    assert set(table["n"]) == {30}


def test_seconds_per_image_are_those_of_the_batch_asked_for(machine: Path) -> None:
    cells = load_cells(machine)
    steps = cells[(cells["metric"] == "train_step_ms") & (cells["subject"] == "dis-tiny")]
    assert len(steps)
    for batch, ms in zip(steps["batch"], steps["value"], strict=True):
        found = seconds_per_image(cells, {"DiS": "dis-tiny", "none": "dis-s/2"}, int(batch))
        assert found == {"DiS": ms / 1000 / int(batch)}


def test_lengths_begin_with_the_baseline_and_end_in_words(machine: Path) -> None:
    table = measured_lengths(load_lengths(machine))
    assert list(table.columns)[:3] == ["length", "b, ms [95 %]", "a, ms [95 %]"]
    notes = " ".join(table.attrs["notes"])
    assert "b: time ~ length^1.00 [1.00, 1.00]" in notes
    assert "a costs what b costs at length 16.1 [14, 18] measured; their MACs are the same" in notes
    assert next(iter(measured_sides(load_times(machine)))) == "side"


def test_aims_are_judged_by_the_interval_of_cpu_time(machine: Path) -> None:
    table = measured_ratios(load_cells(machine))
    assert list(zip(table["join"], table["L"], table["aim is"], strict=True)) == [
        ("sum", 64, "within the interval"),
        ("sum", 256, "missed"),
        ("concat", 256, "within the interval"),
    ]


def test_figures_show_medians_and_intervals_of_one_machine(machine: Path) -> None:
    cells = load_cells(machine)
    figure = network_times(cells)
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes] == [
        "latency of one call",
        "training step",
    ]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["dis-tiny", "dit-tiny"]
    both = pd.concat([cells, cells.assign(machine="another")])
    assert (
        "share no axis" in describe(network_times(both))
        or "share no axis" in network_times(both).axes[0].texts[0].get_text()
    )
    assert len(time_vs_resolution(load_times(machine)).axes[0].lines) == 4  # times, and MACs dotted
    assert "study.bench" in time_vs_length(load_lengths(machine / "none")).axes[0].texts[0].get_text()


def test_the_page_has_every_table_and_names_where_it_is_from(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(machine)]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    page = (machine / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# a-cpu\n\na CPU; device cpu; torch 2; commits abc; protocols bench-1.")
    for name in ("networks", "lengths", "resolution"):
        assert f"![{name}]({name}.png)" in page
        assert (machine / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    before = page
    assert main([str(machine)]) == 0
    assert (machine / "README.md").read_text(encoding="utf-8") == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "that python -m study.bench wrote" in capsys.readouterr().err
    assert load_cells(tmp_path).empty
