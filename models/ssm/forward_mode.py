"""Forward-mode derivatives, which the opaque operators would drop without a word."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_tangents(operator: str, *inputs: Tensor | None) -> None:
    """Inputs of an operator that knows reverse mode only must carry no tangents."""
    if torch.compiler.is_compiling():
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise NotImplementedError(f"{operator} has no forward-mode derivative: use reverse mode (torch.autograd.grad)")
