"""What a device can run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def triton_runs_on(device: torch.device) -> bool:
    """Matrix units for bf16 and Triton itself: NVIDIA from Ampere on."""
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
