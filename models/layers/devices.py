"""What a device can run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import group_norm


@cache
def triton_runs_on(device: torch.device) -> bool:
    """Matrix units for bf16 and Triton itself: NVIDIA from Ampere on."""
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def prefers_channels_last(x: Tensor) -> bool:
    """Features of convolutions on CUDA, where matrix units read channels side by side.

    Not while compiling: the compiler lays them out itself. On a CPU it makes no difference worth its rounding.
    """
    return x.is_cuda and not torch.compiler.is_compiling() and norms_keep_channels_last(x.device)


@cache
def norms_keep_channels_last(device: torch.device) -> bool:
    """Before torch 2.15 a GroupNorm on CUDA gave channels first back, and each of them would cost two copies."""
    few = torch.zeros(2, 4, 2, 2, device=device).contiguous(memory_format=torch.channels_last)
    return group_norm(few, 2).is_contiguous(memory_format=torch.channels_last)
