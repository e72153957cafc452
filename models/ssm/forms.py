"""Which form of S4D's convolution runs where: the one place in which devices, dtypes and shapes decide.

By floor model, to be confirmed by measurement (benchmarks/gpu.py): the ranges for accelerators follow from
counted bytes and operations (docs/kernels.md), not from times.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from models.layers.devices import triton_runs_on

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
    return Form.FUSED if fits and triton_runs_on(u.device) else Form.CHUNKED
