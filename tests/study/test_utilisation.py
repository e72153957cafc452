"""Throughput and utilisation beside the curve, against their definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import study.bench.peaks
from models import named_config
from study.compose import resolve
from study.results import read_rows
from study.run import run
from study.run_directory import Failure, RunDirectory, load_config, read_curve
from study.strict import ConfigError
from study.utilisation import Peak, peak_of, utilisation
from tests.study.short_run import IMAGES, fail_at, finished


def test_utilisation_of_dit_xl() -> None:
    """118.6 GMACs an image as published: 1000 images/s need 711.8 TFLOP/s, of eight devices of 300 each 29.7 %."""
    config = replace(resolve([]), backbone=named_config("dit-xl/2"))
    assert utilisation(config, 1000.0, Peak(300.0, "stated"), 8) == pytest.approx(0.2966, abs=2e-4)
    assert utilisation(config, 1000.0, None, 8) is None


def test_speed_stands_beside_the_curve_and_not_in_it(undisturbed: RunDirectory, words: list[str]) -> None:
    directory = finished([*words, "machine.peak_tflops=0.001"])
    assert directory.curve.read_bytes() == undisturbed.curve.read_bytes()
    points, config = read_curve(directory.speed), load_config(directory.config)
    assert [point["images"] for point in points] == list(range(4, IMAGES + 1, 4))
    flops = 6 * config.backbone.macs().total
    for point in points:
        assert point["mfu"] == pytest.approx(flops * point["images_per_second"] / 1e9)
    rows = {row.metric: row for row in read_rows(directory.rows)}
    assert rows["mfu"].value == pytest.approx(flops * rows["images_per_second"].value / 1e9)
    assert (rows["mfu"].provenance["peak_tflops"], rows["mfu"].provenance["peak"]) == ("0.001", "stated")
    assert "MFU" in directory.log.read_text()


def test_a_resumed_run_says_each_interval_once(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the intervals after the last checkpoint, what the second attempt measured."""

    def fail() -> None:
        raise ZeroDivisionError

    fail_at(monkeypatch, 7, fail)
    assert run(resolve(words)).failure is Failure.BUG
    directory = finished(words)
    assert [point["images"] for point in read_curve(directory.speed)] == list(range(4, IMAGES + 1, 4))


def test_without_a_peak_there_is_no_utilisation(undisturbed: RunDirectory) -> None:
    assert all(point.keys() == {"images", "images_per_second", "ranks"} for point in read_curve(undisturbed.speed))
    assert "mfu" not in {row.metric for row in read_rows(undisturbed.rows)}


def test_a_peak_is_measured_in_the_runs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def matmul_gflops(device: torch.device, dtype: str, *rest: object) -> float:
        asked.append(dtype)
        return 1500.0

    monkeypatch.setattr(study.bench.peaks, "matmul_gflops", matmul_gflops)
    config = resolve(["machine.measure_peak=true", "train.precision=bf16"])
    assert peak_of(config, torch.device("cpu")) == Peak(1.5, "measured")
    assert asked == ["bf16"]
    assert peak_of(resolve([]), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("machine.peak_tflops=-1", r"machine\.peak_tflops=-1\.0 is not valid: must be 0 \(not known\) or more"),
        ("machine.measure_peak=true", r"machine\.measure_peak=True is not valid: must be false, as peak_tflops=2"),
    ],
)
def test_peaks_that_make_no_sense(word: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        resolve(["machine.peak_tflops=2", word])
