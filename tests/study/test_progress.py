"""What is said of a run's progress, and that peak memory is this process's own."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from study import progress
from study.progress import SamplingProgress, TrainingProgress, peak_memory_mib

CHILD = """
import torch
from study.progress import peak_memory_mib
before = peak_memory_mib(torch.device("cpu"))
held = bytearray(200 << 20)
print(before, peak_memory_mib(torch.device("cpu")))
"""


def test_a_peak_is_not_inherited_from_whoever_started_the_process() -> None:
    held = torch.ones(3 << 28, dtype=torch.uint8)  # 768 MiB
    mine = peak_memory_mib(torch.device("cpu"))
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < mine - 300
    assert 190 < after - before < 260
    assert held[-1] == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_sampling_says_a_line_now_and_then_and_at_the_end(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    tell = SamplingProgress(100)
    with caplog.at_level(logging.INFO):
        for done in (20, 40, 60, 80, 100):  # 20 were there; then 4 seconds for each 20
            tell(done)
            clock[0] += 4
    assert caplog.messages == ["sampled 80/100  5 images/s  0:04 left", "sampled 100/100  5 images/s  0:00 left"]


def test_nothing_is_said_of_samples_that_were_all_there(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        SamplingProgress(100)(100)
    assert caplog.messages == []


def test_sampling_has_a_bar_under_that_of_training(clock: list[float]) -> None:
    with TrainingProgress(640, 640, 64, torch.device("cpu"), show_bar=True) as training:
        tell = training.sampling(10)
        tell(0)
        clock[0] += 1
        tell(2.5)
        bars = training._bar
        assert isinstance(bars, Progress)
        assert [(task.completed, task.total) for task in bars.tasks] == [(640, 640), (2, 10)]
        console = Console(width=120, file=io.StringIO())
        console.print(bars.get_renderable())
        assert "2/10" in console.file.getvalue()
