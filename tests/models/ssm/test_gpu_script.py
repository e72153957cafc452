"""The script that a GPU machine is measured with runs from end to end; here at toy sizes, kernels interpreted."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.ssm.forms import Form

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[3]


def asked(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def test_runs_whole_on_a_cpu(tmp_path: Path) -> None:
    done = asked("--tiny", "--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    exact = rows(tmp_path / "gpu_exactness.csv")
    assert {row["form"] for row in exact} == {"convolution", "chunked", "fused", "fused glue"}
    assert {row["case"] for row in exact if row["form"] == "fused glue"} == {"dit-tiny", "diffussm-tiny"}
    timed = {row["form"] for row in rows(tmp_path / "gpu_cores.csv") if row["pass"] == "forward and backward"}
    assert {"reference module", "merged FFT", "FFT, custom backward", "bmm chain", "fused", "SDPA, 16 heads"} <= timed
    assert {row["mode"] for row in rows(tmp_path / "gpu_models.csv")} == {
        "train",
        "sample, 2 steps, guidance 1",
        "forward and backward",
    }
    assert len(list(tmp_path.glob("gpu_profile_*.txt"))) == 2
    launched = rows(tmp_path / "gpu_graphs.csv")
    assert {row["way"] for row in launched} == {"launched", "replayed", "machine.compile=false"}
    assert all(row["verdict"] == "within" for row in launched if row["way"] == "replayed")
    sizes = rows(tmp_path / "gpu_crossover.csv")
    assert [row["pixels"] for row in sizes] == ["8", "12", "crossover"]
    assert all(float(row["ratio at equal MACs"]) > 0 for row in sizes[:-1])
    for file in tmp_path.glob("gpu_*.csv"):
        assert not [row for row in rows(file) if "Error" in row.get("ms", "")], file


@pytest.mark.parametrize(
    ("ratios", "where"),
    [
        ({256: 2.0, 1024: 0.5}, "512 px"),
        ({1024: 0.5, 256: 2.0, 512: 1.0}, "512 px"),
        ({256: 4.0, 512: 2.0, 1024: 0.5}, "724 px"),  # 512 times the root of 2
        ({256: 0.9, 512: 0.8}, "at 256 px or below"),
        ({256: 3.0, 512: 2.0}, "above 512 px"),
        ({}, "not known"),
    ],
)
def test_where_a_ratio_falls_below_one(ratios: dict[int, float], where: str) -> None:
    from benchmarks.gpu_crossover import crossing

    assert crossing(ratios) == where


def test_depth_makes_the_cost_of_another() -> None:
    from benchmarks.gpu_crossover import at_equal_cost, total
    from study.bench.config import Network

    dit = Network("dit-xl/2", (64, 64))
    ours = at_equal_cost("diffussm-xl", dit)
    assert ours.size == dit.size
    assert total(ours) / total(dit) == pytest.approx(1, abs=0.05)


def test_refuses_in_one_line() -> None:
    done = asked("--device", "cpu")
    assert done.returncode == 2
    assert "--device cpu is not valid without --tiny" in done.stderr.splitlines()[-1]


def test_a_call_that_fails_says_why_and_the_others_are_timed() -> None:
    from benchmarks.gpu import Clock, Spread

    turns: list[int] = []

    def late() -> None:
        turns.append(len(turns))
        if len(turns) > 3:
            raise RuntimeError("no more\nof it")

    def full() -> None:
        raise torch.cuda.OutOfMemoryError

    times = Clock(torch.device("cpu")).interleaved({"full": full, "late": late, "right": lambda: None}, 4)
    assert times["full"] == "out of memory"
    assert times["late"] == "RuntimeError: no more"
    assert isinstance(times["right"], Spread)
    assert len(turns) == 4


def test_a_training_step_that_does_not_fit_is_not_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    def full() -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(gpu, "make_work", lambda cell: ({"forward": full}, {}))
    plan = gpu.Plan.tiny(torch.device("cpu"))
    cells = {"dit-tiny": gpu.Cell(plan.networks[1], "train", 2)}
    lines = list(gpu.model_lines(plan, gpu.Clock(plan.device), gpu.Ceilings(1, 1), cells, tmp_path))
    assert [line["ms"] for line in lines] == ["out of memory"]
    assert not list(tmp_path.iterdir())


def test_models_are_compiled_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    told = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: told.append(mode) or network)
    plan = gpu.Plan.tiny(torch.device("cpu"))
    cells = {"dit-tiny": gpu.Cell(plan.networks[1], "train", 2, compile=gpu.COMPILED["max-autotune"])}
    assert len(list(gpu.model_lines(plan, gpu.Clock(plan.device), gpu.Ceilings(1, 1), cells, tmp_path))) == 1
    assert told == ["max-autotune"]
    assert [file.name for file in tmp_path.iterdir()] == ["gpu_profile_dit-tiny_max_autotune.txt"]


def test_lines_are_kept_when_a_later_one_fails(tmp_path: Path) -> None:
    from benchmarks.gpu import written

    def lines() -> Iterator[dict[str, str]]:
        yield {"a": "1", "verdict": "within"}
        yield {"a": "2", "verdict": "above"}
        raise RuntimeError("the driver")

    with pytest.raises(RuntimeError, match="the driver"):
        written(tmp_path, "cores", lines(), "head")
    assert [row["a"] for row in rows(tmp_path / "gpu_cores.csv")] == ["1", "2"]


def test_a_form_that_fails_says_why_and_the_others_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    def without_chunks(*_: object) -> None:
        raise RuntimeError("no chunks")

    monkeypatch.setattr("models.ssm.core.chunked_conv", without_chunks)
    monkeypatch.setattr(gpu, "Form", [Form.CHUNKED, Form.CONVOLUTION])
    monkeypatch.setattr(gpu.gpu_glue, "network_errors", lambda device: iter(()))
    lines = list(gpu.exactness(gpu.Plan.tiny(torch.device("cpu"))))
    assert [line["verdict"] for line in lines] == ["RuntimeError: no chunks", "within"]
