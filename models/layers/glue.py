"""Norm with modulation, and gate with residual sum, as one pass over memory each: opaque operators over Triton.

What `models.layers.modulation` calls on a GPU; under `torch.compile` the compiler fuses the plain expressions
itself. Arithmetic is float32 inside, and sums over tokens are the same every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from models.layers.derivatives import refuse_second, refuse_tangents
from models.layers.glue_kernels import (
    gated_sum_backward_kernel,
    gated_sum_kernel,
    norm_modulate_backward_kernel,
    norm_modulate_kernel,
)

RUN = 32
"""Rows per program backward: their partial sums cost a 32nd of a pass."""


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, x (B, L, D), shift and scale (B, D) or (1, D), in what the next product reads.

    Under autocast that is its dtype: a matrix product rounds to it anyway.
    """
    refuse_tangents("glue::norm_modulate", x, shift, scale)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    y: Tensor = norm_modulate_forward(x.contiguous(), _of_each(shift, x), _of_each(scale, x), eps, dtype)[0]
    return y


def gated_sum(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate branch in x's dtype, x and branch (B, L, D), gate (B, D) or (1, D)."""
    refuse_tangents("glue::gated_sum", x, gate, branch)
    y: Tensor = gated_sum_forward(x.contiguous(), _of_each(gate, x), branch.contiguous())
    return y


@torch.library.custom_op("glue::norm_modulate", mutates_args=())
def norm_modulate_forward(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and inverse deviation of every row (B, L)."""
    b, length, width = x.shape
    shift, scale = _rows(shift), _rows(scale)
    y, mean, rstd = _norm_outputs(x, dtype)
    with torch.cuda.device_of(x):  # where Triton launches; nothing on a CPU
        norm_modulate_kernel[(b * length,)](
            *(x, shift, scale, y, mean, rstd, length, width, shift.stride(0), scale.stride(0), eps), **_block(width)
        )
    return y, mean, rstd


@torch.library.custom_op("glue::norm_modulate_backward", mutates_args=())
def norm_modulate_backward(
    grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, L, D) and, in float32, of shift and scale (B, D)."""
    b, length, width = x.shape
    scale, grad_x, runs = _rows(scale), torch.empty_like(x), triton.cdiv(length, RUN)
    partial = mean.new_empty(2, b, runs, width)
    with torch.cuda.device_of(x):
        norm_modulate_backward_kernel[(b, runs)](
            *(grad.contiguous(), x, scale, mean, rstd, grad_x, partial[0], partial[1]),
            *(length, width, scale.stride(0)),
            RUN=RUN,
            **_block(width),
        )
    grad_shift, grad_scale = partial.sum(2)
    return grad_x, grad_shift.clone(), grad_scale.clone()


@torch.library.custom_op("glue::gated_sum", mutates_args=())
def gated_sum_forward(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    (b, length, width), gate = x.shape, _rows(gate)
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        gated_sum_kernel[(b * length,)](x, gate, branch, y, length, width, gate.stride(0), **_block(width))
    return y


@torch.library.custom_op("glue::gated_sum_backward", mutates_args=())
def gated_sum_backward(grad: Tensor, gate: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the branch (B, L, D) and, in float32, of the gate (B, D)."""
    (b, length, width), gate = branch.shape, _rows(gate)
    grad_branch, runs = torch.empty_like(branch), triton.cdiv(length, RUN)
    partial = branch.new_empty(b, runs, width, dtype=torch.float32)
    with torch.cuda.device_of(branch):
        gated_sum_backward_kernel[(b, runs)](
            *(grad.contiguous(), gate, branch, grad_branch, partial, length, width, gate.stride(0)),
            RUN=RUN,
            **_block(width),
        )
    return grad_branch, partial.sum(1)


def _of_each(condition: Tensor, x: Tensor) -> Tensor:
    """One condition may be that of all images."""
    return condition.expand(len(x), -1)


def _rows(x: Tensor) -> Tensor:
    """(B, D) whose rows may lie apart, as chunks of one projection do."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _block(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def _norm_outputs(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), mean, torch.empty_like(mean)


@norm_modulate_forward.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return _norm_outputs(x, dtype)


@norm_modulate_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    condition = x.new_empty(x.shape[0], x.shape[2], dtype=torch.float32)
    return torch.empty_like(x), condition, torch.empty_like(condition)


@gated_sum_forward.register_fake
def _(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    return torch.empty_like(x)


@gated_sum_backward.register_fake
def _(grad: Tensor, gate: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(branch), branch.new_empty(branch.shape[0], branch.shape[2], dtype=torch.float32)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, shift, scale = inputs[:3]
    ctx.save_for_backward(x, scale, *output[1:])
    ctx.shift_dtype = shift.dtype
    ctx.set_materialize_grads(False)


def _norm_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:  # only the statistics are used, and nothing needs their gradient
        return (None,) * 5
    scale = ctx.saved_tensors[1]
    grad_x, grad_shift, grad_scale = norm_modulate_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_shift.to(ctx.shift_dtype), grad_scale.to(scale.dtype), None, None


def _keep_gate(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])
    ctx.set_materialize_grads(False)


def _gate_gradients(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 3
    gate, _ = ctx.saved_tensors
    grad_branch, grad_gate = gated_sum_backward(grad, *ctx.saved_tensors)
    return grad, grad_gate.to(gate.dtype), grad_branch


norm_modulate_forward.register_autograd(_norm_gradients, setup_context=_keep_norm)
gated_sum_forward.register_autograd(_gate_gradients, setup_context=_keep_gate)
refuse_second("glue::norm_modulate", norm_modulate_backward)
refuse_second("glue::gated_sum", gated_sum_backward)
