"""Which form of S4D's convolution runs where: the one place in which devices, dtypes and shapes decide.

By floor model, to be confirmed by measurement (benchmarks/gpu.py): the ranges for accelerators follow from
counted bytes and operations (docs/kernels.md), not from times.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)

SHORT_LENGTH = 128
"""Longest sequence that a GPU convolves as one Toeplitz product: 2L operations per output, and no states."""

MOST_MODES = 32
"""Modes whose tables and states fit the registers of a program of the fused kernel."""


class Form(Enum):
    CONVOLUTION = "direct product of a short sequence, transforms of a long one; float32 inside"
    CHUNKED = "chunks as batched products in the dtype of the sequence"
    FUSED = "chunks in one Triton kernel, in the dtype of the sequence"


def choose(u: Tensor, modes: int) -> Form:
    """u (B, L, H) and modes per channel. Half precision on a GPU takes its matrix units; all else is exact."""
    if u.device.type == "cpu" or u.dtype not in HALF:
        return Form.CONVOLUTION
    fits = u.shape[1] > SHORT_LENGTH and modes <= MOST_MODES
    return Form.FUSED if fits and _triton_runs_on(u.device) else Form.CHUNKED


@cache
def _triton_runs_on(device: torch.device) -> bool:
    """Matrix units for bf16 and Triton itself: NVIDIA from Ampere on."""
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
