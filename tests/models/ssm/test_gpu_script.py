"""The script that a GPU machine is measured with runs from end to end; here at toy sizes, kernels interpreted."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert {row["form"] for row in rows(tmp_path / "gpu_exactness.csv")} == {"convolution", "chunked", "fused"}
    timed = {row["form"] for row in rows(tmp_path / "gpu_cores.csv") if row["pass"] == "forward and backward"}
    assert {"reference module", "merged FFT", "FFT, custom backward", "bmm chain", "fused", "SDPA, 16 heads"} <= timed
    assert {row["mode"] for row in rows(tmp_path / "gpu_models.csv")} == {"train", "sample"}
    assert len(list(tmp_path.glob("gpu_profile_*.txt"))) == 2


def test_refuses_in_one_line() -> None:
    done = asked("--device", "cpu")
    assert done.returncode == 2
    assert "--device cpu is not valid without --tiny" in done.stderr.splitlines()[-1]
