"""Model FLOP utilisation: what training needs on paper, as a share of what the device can do.

What it can do is stated by the user or measured here, never looked up.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from study.config import RunConfig

log = logging.getLogger("study.run")

TRAINING_FLOPS_PER_MAC = 6  # three forward passes (a backward pass costs two) of two operations; nothing recomputed
MEASURED_FOR = 1.0  # seconds


@dataclass(frozen=True)
class Peak:
    """Of one device, in the run's precision."""

    tflops: float
    origin: str  # stated or measured


def peak_of(config: RunConfig, device: torch.device) -> Peak | None:
    """None: not known."""
    if config.machine.peak_tflops:
        return Peak(config.machine.peak_tflops, "stated")
    if not config.machine.measure_peak:
        return None
    from study.bench.peaks import matmul_gflops
    from study.bench.timing import timer_for

    gflops = matmul_gflops(device, config.train.precision, timer_for(device), MEASURED_FOR)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # those matrices are no part of the run
    log.info("this device multiplies matrices at %.4g TFLOP/s in %s", gflops / 1e3, config.train.precision)
    return Peak(gflops / 1e3, "measured")


def utilisation(config: RunConfig, images_per_second: float, peak: Peak | None, devices: int) -> float | None:
    """The share, of so many devices together; None where their peak is not known."""
    if peak is None:
        return None
    needed = TRAINING_FLOPS_PER_MAC * config.backbone.macs().total * images_per_second
    return needed / (peak.tflops * 1e12 * devices)
