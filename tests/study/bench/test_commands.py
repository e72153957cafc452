"""The commands, with processes of their own: what they leave, what they refuse."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from study import store
from study.bench.__main__ import main
from study.bench.store import read_cell, read_samples
from study.cost.match import measured_rate
from study.results import read_rows, write_rows

HERE = Path(__file__).parent
QUICK = ["--min-samples", "4", "--min-seconds", "0", "--repeats", "2", "--blocks", "2", "--rejected", "1000"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks and a peer, however busy the machine is."""
    folder = tmp_path_factory.mktemp("bench") / "machine"
    peer = f"plain={HERE / 'peers_here.py'}:plain"
    words = ["dit-tiny", "diffussm-tiny", "--mode", "forward", "train", "--peer", peer, "--out", str(folder), *QUICK]
    assert main(words) == 0
    return folder


def test_rows_are_a_result_store_with_where_they_come_from(measured: Path) -> None:
    frame = store.load(measured)
    assert set(frame["status"]) == {"finished"}
    latency = frame[frame["metric"] == "latency_ms"]
    assert sorted(latency["name"]) == ["diffussm-tiny", "dit-tiny", "plain"]
    assert (latency["value"] > 0).all()
    assert (latency["n"] >= 4).all()
    assert (latency["low"] <= latency["value"]).all()
    for fact in ("cpu", "torch", "commit", "threads", "pinned", "allocator", "peak_gflops"):
        assert frame[f"provenance.{fact}"].notna().all(), fact
    assert frame["protocol"].unique().tolist() == ["bench-1-n4-s0-p2-b2-q0.1-1000"]
    metrics = set(frame["metric"])
    assert {"train_step_ms", "train_forward_ms", "train_backward_ms", "train_optimiser_ms"} <= metrics
    assert {"throughput", "train_throughput", "latency_mfu", "latency_ratio", "growth_mib"} <= metrics


def test_every_sample_is_kept_and_read_back(measured: Path) -> None:
    samples = read_samples(measured)
    assert len(samples) == 6
    for identity, taken in samples.items():
        cell = read_cell(measured, identity)
        assert cell.id == identity
        assert {(each.repeat, each.block) for each in taken} == {(r, b) for r in range(2) for b in range(2)}
        assert {len(each.sample.phases) for each in taken} == {3 if cell.mode == "train" else 1}


def test_rows_of_one_backbone_turn_milliseconds_into_macs(measured: Path) -> None:
    folders = (
        folder for folder in (measured / "runs").iterdir() if "latency_ms" in (folder / "rows.jsonl").read_text()
    )
    rates = {}
    for folder in folders:
        rows = {row.metric: row.value for row in read_rows(folder / "rows.jsonl")}
        if "gmacs" in rows:
            rates[folder.name] = measured_rate(folder / "rows.jsonl") * rows["latency_ms"] / rows["gmacs"]
    assert list(rates.values()) == pytest.approx([1, 1])


def test_the_table_has_phases_and_the_peer_beside_the_baseline(measured: Path) -> None:
    table = pd.read_csv(measured / "table.csv")
    assert table[table["what"] == "latency"]["subject"].tolist() == ["dit-tiny", "plain", "diffussm-tiny"]
    assert len(table) == 3 + 3 * 4
    assert (measured / "table.md").read_text().count("\n") == 2 + len(table)


def test_the_same_measurement_twice_tells_no_lie(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(measured), str(measured)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all("no difference told" in line or "no answer, the interval" in line for line in lines[:-1])
    assert "hold together in 95 %" in lines[-1]


def without_noise(measured: Path, folder: Path, factor: float) -> Path:
    """The same results with every sample at its cell's median, times a factor."""
    shutil.copytree(measured, folder)
    frame = pd.read_parquet(measured / "samples.parquet")
    frame.loc[:, "phase0":"cpu"] = factor * frame.groupby("cell").transform("median").loc[:, "phase0":"cpu"]
    frame.to_parquet(folder / "samples.parquet")
    return folder


def with_fact(folder: Path, fact: str, value: str) -> None:
    for file in folder.glob("runs/*/rows.jsonl"):
        rows = read_rows(file)
        write_rows(file, [replace(row, provenance={**row.provenance, fact: value}) for row in rows])


def test_a_change_is_told_with_its_interval(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = (without_noise(measured, tmp_path / name, factor) for name, factor in (("b", 1.0), ("a", 2.0)))
    for folder in (before, after):
        with_fact(folder, "peak_gflops", "50")
    assert main(["compare", str(before), str(after)]) == 0
    assert capsys.readouterr().out.count("slower, time +100.0% [+100.0%, +100.0%]") == 6
    with_fact(after, "peak_gflops", "20")  # the machine itself was that much slower
    assert main(["compare", str(before), str(after), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {change["verdict"] for change in found} == {"no answer, the interval is too wide"}
    assert found[0]["time"]["interval"] == pytest.approx([2 / 2.5, 2 * 2.5])
    with_fact(after, "cpu", "another")
    assert main(["compare", str(before), str(after)]) == 2
    assert "times of one machine" in capsys.readouterr().err


def test_json_has_every_sample_row_and_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spin:1", "spin:2", "--json", "--no-memory", "--out", str(tmp_path), *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"]["repeats"] == 2
    for cell in found["cells"]:
        assert len(cell["samples"]) == len(read_samples(tmp_path)[cell["cell"]]) >= 4
        assert cell["samples"][0].keys() == {"repeat", "block", "turn", "phases", "wall", "cpu"}
        assert len(cell["warm_ups"]) == 2
        kept = [asdict(row) for row in read_rows(tmp_path / "runs" / cell["cell"] / "rows.jsonl")]
        assert json.loads(json.dumps(kept)) == cell["rows"]


def test_no_time_is_shown_without_n_and_interval(measured: Path) -> None:
    lines = [line.split("|")[1:-1] for line in (measured / "table.md").read_text().splitlines()]
    head = [name.strip() for name in lines[0]]
    for line in lines[2:]:
        cells = dict(zip(head, (cell.strip() for cell in line), strict=True))
        assert re.fullmatch(r"\S+ \[\S+, \S+\]", cells["ms [95 %]"])
        assert int(cells["n"]) >= 4
        for name in ("ratio [95 %]", "CPU ratio [95 %]"):
            assert not cells[name] or re.fullmatch(r"\S+ \[\S+, \S+\]", cells[name])


def test_what_is_recorded_of_a_gpu_is_every_size_compiled_and_not() -> None:
    from study.bench.config import Cell, Spin
    from study.bench.record import network_suites

    suites = network_suites(Cell(Spin(1), device="cuda"))
    cells = [cell for suite in suites for cell in suite]
    assert {cell.dtype for cell in cells} == {"bf16"}
    assert {cell.compile for cell in cells} == {False, True}
    assert {cell.subject.size for cell in cells} == {(32, 32), (64, 64)}
    assert {"dit-s/2", "dit-b/2", "dit-xl/2", "diffussm-xl", "unet-ldm-8"} <= {cell.subject.name for cell in cells}
    assert all(cell.subject.config.macs().total for cell in cells)
    on_cpu = [cell for suite in network_suites(Cell(Spin(1))) for cell in suite]
    assert {cell.mode for cell in on_cpu} == {"forward", "train", "sample"}


def test_known_work_is_ranked_by_cpu_time_in_real_processes(tmp_path: Path) -> None:
    words = ["spin:10", "spin:40", "--no-memory", "--out", str(tmp_path), *QUICK]
    assert main(words) == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("subject")
    assert 2 < table["cpu_ratio"]["spin:40"] < 8


def test_noise_is_rejected_and_memory_that_is_not_there_is_told(tmp_path: Path) -> None:
    strict = [*QUICK[:-1], "1e-9", "--noisy", "1e-9", "--no-memory", "--out", str(tmp_path)]
    assert main(["dit-tiny", "--batch", "1", str(10**12), *strict]) == 0
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["note"].str.startswith("rejected").tolist() == [True, False]
    assert table["note"][1] == "out of memory"
    assert "ms" not in table or table["ms"].isna().all()
    metrics = {row.metric for file in tmp_path.glob("runs/*/rows.jsonl") for row in read_rows(file)}
    assert {"out_of_memory", "latency_rejected_spread"} <= metrics
    assert "latency_ms" not in metrics


def test_lengths_leave_words_a_figure_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["lengths", "--length", "8", "16", "32", "--width", "8", "--state", "4", "--out", str(tmp_path), *QUICK]
    assert main(words) == 0
    assert "by MACs" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "lengths-forward.csv")) == 9
    assert (tmp_path / "lengths-forward.png").exists()


def test_scaling_leaves_what_the_figure_of_resolutions_reads(tmp_path: Path) -> None:
    words = ["scaling", "dit-tiny", "diffussm-tiny", "--side", "4", "8", "16", "--out", str(tmp_path / "bench" / "m")]
    assert main([*words, *QUICK]) == 0
    from analysis.times import load_times

    times = load_times(tmp_path)
    assert sorted(times["side"].unique()) == [4, 8, 16]
    assert (times["low"] <= times["ms"]).all()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "names"),
        (["dit-tinny"], "dit-tiny"),
        (["dit-tiny", "dit-tiny"], "distinct"),
        (["dit-tiny", "--batch", "0"], "batch=0"),
        (["dit-s/2", "--size", "100"], "size=100"),
        (["dit-tiny", "--device", "abacus"], "device='abacus'"),
        (["dit-tiny", "--device", "xpu"], "device='xpu'"),
        (["dit-tiny", "--threads", "100000"], "threads=100000"),
        (["dit-tiny", "--min-samples", "0"], "min_samples=0"),
        (["dit-tiny", "--noisy", "0.5"], "noisy, rejected"),
        (["dit-tiny", "--peer", "x=y"], "name=path:callable"),
        (["spin:x"], "spin"),
        (["spin:1", "--mode", "sample"], "mode"),
        (["scaling", "dit-tiny", "--side", "8", "16"], "side"),
        (["scaling", "dit-tiny", "dit-none", "--side", "8", "16", "32"], "dit-none"),
        (["lengths", "--form", "s4d", "s5"], "form='s5'"),
        (["lengths", "--width", "65"], "width=65"),
        (["compare", "nowhere", "nowhere"], "results='nowhere'"),
    ],
)
def test_bad_words_give_one_line_and_leave_nothing(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_disagrees_stops_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = f"untrue={HERE / 'peers_here.py'}:untrue"
    assert main(["dit-tiny", "--peer", peer, "--no-memory", "--out", str(tmp_path / "out"), *QUICK]) == 2
    error = capsys.readouterr().err.splitlines()
    assert "within 0.001, weights shared" in error[-1]
    assert not (tmp_path / "out").exists()
