"""The commands, with processes of their own: what they leave, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from study import store
from study.bench.__main__ import main
from study.bench.store import read_cell, read_samples
from study.cost.match import measured_rate
from study.results import read_rows

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
    assert frame["protocol"].unique().tolist() == ["bench-1-n4-s0-p2-b2"]
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
    assert all("no difference told" in line for line in lines[:-1])


def test_a_change_is_told_with_its_interval(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = tmp_path / "after"
    after.mkdir()
    (after / "runs").symlink_to(measured / "runs")
    (after / "machine.json").write_text((measured / "machine.json").read_text())
    frame = pd.read_parquet(measured / "samples.parquet")
    frame.loc[:, "phase0":"cpu"] = frame.groupby("cell").transform("median").loc[:, "phase0":"cpu"]
    slow = frame.copy()
    slow.loc[:, "phase0":"cpu"] *= 2
    before = tmp_path / "before"
    before.mkdir()
    (before / "runs").symlink_to(measured / "runs")
    (before / "machine.json").write_text((measured / "machine.json").read_text())
    frame.to_parquet(before / "samples.parquet")
    slow.to_parquet(after / "samples.parquet")
    assert main(["compare", str(before), str(after)]) == 0
    assert capsys.readouterr().out.count("slower, time +100.0% [+100.0%, +100.0%]") == 6
    facts = json.loads((after / "machine.json").read_text())
    facts["provenance"]["cpu"] = "another"
    (after / "machine.json").write_text(json.dumps(facts))
    assert main(["compare", str(before), str(after)]) == 2
    assert "times of one machine" in capsys.readouterr().err


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
