"""Derivatives that the opaque operators lack are refused in one line: forward mode would be dropped without a word,
transforms and second derivatives end in advice for authors of operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_gradtrackingtensor
from torch.autograd import forward_ad


def refuse_tangents(operator: str, *inputs: Tensor | None) -> None:
    """Inputs of an operator that knows reverse mode only must carry no tangents, nor come from `torch.func.grad`."""
    if torch.compiler.is_compiling():
        return
    given = [x for x in inputs if x is not None]
    if any(forward_ad.unpack_dual(x).tangent is not None for x in given):
        raise NotImplementedError(f"{operator} has no forward-mode derivative: use reverse mode (torch.autograd.grad)")
    if any(is_gradtrackingtensor(x) for x in given):
        raise NotImplementedError(f"{operator} is not for torch.func's derivatives: use torch.autograd.grad")


def refuse_second(operator: str, backward: Any) -> None:
    """Of `backward`, the operator's gradient as an operator, no gradient can be had."""

    def refuse(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(f"{operator} has no second derivative: its gradient must be taken without a graph")

    register: Callable[..., None] = backward.register_autograd
    register(refuse)
