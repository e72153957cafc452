"""Which form of S4D's convolution runs where: the one place in which devices, dtypes and shapes decide.

By floor model, to be confirmed by measurement (benchmarks/gpu.py): the ranges for accelerators follow from
counted bytes and operations (docs/kernels.md), not from times.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from models.layers.devices import triton_runs_on
from models.macs import real_fft

HALF = (torch.bfloat16,)
"""What the chunked forms take: their states, summed over a chunk, may leave float16's range."""

SHORT_LENGTH = 128
"""Longest sequence that a GPU convolves as one Toeplitz product: 2L operations per output, and no states."""

MOST_MODES = 32
"""Modes whose tables and states fit the registers of a program of the fused kernel."""


FUSED_CHUNK = 64
"""Tokens per chunk of the fused kernel: the rows of one matrix instruction."""


class Form(Enum):
    CONVOLUTION = "direct product of a short sequence, transforms of a long one; float32 inside"
    CHUNKED = "chunks as batched products in the dtype of the sequence"
    FUSED = "chunks in one Triton kernel, in the dtype of the sequence"


def choose(u: Tensor, modes: int) -> Form:
    """u (B, L, H) and modes per channel. bf16 on a GPU takes its matrix units; all else is exact."""
    if u.device.type == "cpu" or u.dtype not in HALF:
        return Form.CONVOLUTION
    fits = u.shape[1] > SHORT_LENGTH and modes <= MOST_MODES
    return Form.FUSED if fits and triton_runs_on(u.device) else Form.CHUNKED


def executed_flops(form: Form, u: tuple[int, int, int], modes: int, directions: int, streams: int) -> int:
    """Floating-point operations of a forward pass on u (B, L, H) as this form does it, kernel generation aside.

    Model MACs are those of the mathematics and the same for all; this is what the machine is kept busy with.
    """
    from models.ssm.chunked import chunk_length
    from models.ssm.conv import transform_length
    from models.ssm.core import DIRECT_LENGTH

    batch, length, width = u
    if form is Form.CONVOLUTION:
        n = transform_length(length)
        transforms = 2 * real_fft(n, 1 + streams) + 6 * streams * (n // 2 + 1)
        return batch * width * (2 * streams * length**2 if length <= DIRECT_LENGTH else transforms)
    chunk = FUSED_CHUNK if form is Form.FUSED else chunk_length(length)
    count = -(-length // chunk)
    between = 2 * chunk * directions * 4 * modes if count > 1 else 0  # into the states and out of them, re and im
    return batch * width * count * (2 * streams * chunk**2 + between)
