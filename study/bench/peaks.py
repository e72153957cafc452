"""What this device can do at most, measured: multiply matrices, and copy. Utilisation is a share of that."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from study.bench.config import Cell
from study.bench.timing import LEAST_SAMPLE, Timer, Work, block, warm_up
from study.optimizer import AUTOCAST

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices
COPIED = {"cpu": 1 << 27, "cuda": 1 << 31}  # bytes: beyond every cache
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Peaks:
    gflops: float  # 2 per multiply-accumulate
    copy_gb: float  # per second, read and written bytes together
    dtype: str


def measure_peaks(cell: Cell, timer: Timer, seconds: float) -> Peaks:
    """Medians over `seconds` each, by the threads and in the precision that the cells are timed in."""
    device = torch.device(cell.device)
    gflops = matmul_gflops(device, cell.dtype, timer, seconds)
    source = torch.ones(COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    taken = _nanoseconds({"copy": lambda: target.copy_(source)}, device, timer, seconds)
    return Peaks(gflops, 2 * source.nbytes / taken, cell.dtype)


def matmul_gflops(device: torch.device, dtype: str, timer: Timer, seconds: float) -> float:
    """Of square matrices in that precision; with its warm-up it takes up to twice as many seconds."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(AUTOCAST.get(dtype, torch.float32)) for _ in range(2))
    out = torch.empty_like(a)
    taken = _nanoseconds({"matmul": lambda: torch.mm(a, b, out=out)}, device, timer, seconds)
    return FLOPS_PER_MAC * side**3 / taken


def _nanoseconds(work: Work, device: torch.device, timer: Timer, seconds: float) -> float:
    warm = warm_up(work, timer, seconds, LEAST_SAMPLE[device.type])
    taken = block(work, timer, 5, seconds, warm.calls_per_sample)
    return 1e9 * statistics.median(sample.phases[0] for sample in taken)
