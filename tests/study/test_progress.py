"""Peak memory is this process's own."""

from __future__ import annotations

import subprocess
import sys

import torch

from study.progress import peak_memory_mib

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
