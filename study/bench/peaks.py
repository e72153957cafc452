"""What this device can do at most, measured: multiply matrices, and copy. Utilisation is a share of that."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from study.bench.config import Cell
from study.bench.timing import LEAST_SAMPLE, Timer, block, warm_up
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
    dtype = AUTOCAST.get(cell.dtype, torch.float32)
    side, count = SIDE[device.type], COPIED[device.type] // 4
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)

    def rate(amount: float, work: dict[str, object]) -> float:
        warm = warm_up(work, timer, seconds, LEAST_SAMPLE[device.type])  # type: ignore[arg-type]
        taken = block(work, timer, 5, seconds, warm.calls_per_sample)  # type: ignore[arg-type]
        return amount / statistics.median(sample.phases[0] for sample in taken) / 1e9

    gflops = rate(FLOPS_PER_MAC * side**3, {"matmul": lambda: torch.mm(a, b, out=out)})
    return Peaks(gflops, rate(8 * count, {"copy": lambda: target.copy_(source)}), cell.dtype)
