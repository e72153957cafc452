"""Triton kernels of what lies between matrix products: rows (B L, D), the condition (B, D) of each image.

Backward a program owns a run of one image's rows and adds up their gradients of the condition in registers:
no atomics, one partial sum per program.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_modulate_kernel(x, shift, scale, y, mean, rstd, L, D, by_shift, by_scale, eps, BLOCK: tl.constexpr):
    """y = (x - mean) rstd (1 + scale) + shift; a program per row."""
    row = tl.program_id(0).to(tl.int64)
    image, d = row // L, tl.arange(0, BLOCK)
    inside = d < D
    value = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
    centre = tl.sum(value, axis=0) / D
    offset = tl.where(inside, value - centre, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(offset * offset, axis=0) / D + eps)
    factor = 1 + tl.load(scale + image * by_scale + d, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(shift + image * by_shift + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * D + d, (offset * inverse * factor + added).to(y.dtype.element_ty), mask=inside)
    tl.store(mean + row, centre)
    tl.store(rstd + row, inverse)


@triton.jit
def norm_modulate_backward_kernel(
    grad, x, scale, mean, rstd, grad_x, grad_shift, grad_scale, L, D, by_scale, RUN: tl.constexpr, BLOCK: tl.constexpr
):
    """grad_shift and grad_scale (B, runs, D) get one partial sum per program."""
    image, run, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    inside = d < D
    factor = 1 + tl.load(scale + image * by_scale + d, mask=inside, other=0.0).to(tl.float32)
    sum_shift, sum_scale = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in range(RUN):
        token = run * RUN + step
        here = d < tl.where(token < L, D, 0)  # a whole row or nothing
        row = image * L + token
        dy = tl.load(grad + row * D + d, mask=here, other=0.0).to(tl.float32)
        centre = tl.load(mean + row, mask=token < L, other=0.0)
        inverse = tl.load(rstd + row, mask=token < L, other=0.0)
        value = tl.load(x + row * D + d, mask=here, other=0.0).to(tl.float32)
        normed = tl.where(here, (value - centre) * inverse, 0.0)
        sum_shift += dy
        sum_scale += dy * normed
        inner = dy * factor
        inner -= tl.sum(inner, axis=0) / D + normed * (tl.sum(inner * normed, axis=0) / D)
        tl.store(grad_x + row * D + d, (inner * inverse).to(grad_x.dtype.element_ty), mask=here)
    place = (image * tl.num_programs(1) + run) * D + d
    tl.store(grad_shift + place, sum_shift, mask=inside)
    tl.store(grad_scale + place, sum_scale, mask=inside)


@triton.jit
def gated_sum_kernel(x, gate, branch, y, L, D, by_gate, BLOCK: tl.constexpr):
    """y = x + gate branch; a program per row."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    inside = d < D
    factor = tl.load(gate + row // L * by_gate + d, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(branch + row * D + d, mask=inside, other=0.0).to(tl.float32)
    stream = tl.load(x + row * D + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * D + d, (stream + factor * value).to(y.dtype.element_ty), mask=inside)


@triton.jit
def gated_sum_backward_kernel(
    grad, gate, branch, grad_branch, grad_gate, L, D, by_gate, RUN: tl.constexpr, BLOCK: tl.constexpr
):
    """grad_gate (B, runs, D) gets one partial sum per program; that of x is `grad` itself."""
    image, run, d = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    inside = d < D
    factor = tl.load(gate + image * by_gate + d, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(RUN):
        token = run * RUN + step
        here = d < tl.where(token < L, D, 0)  # a whole row or nothing
        place = (image * L + token) * D + d
        dy = tl.load(grad + place, mask=here, other=0.0).to(tl.float32)
        total += dy * tl.load(branch + place, mask=here, other=0.0).to(tl.float32)
        tl.store(grad_branch + place, (dy * factor).to(grad_branch.dtype.element_ty), mask=here)
    tl.store(grad_gate + (image * tl.num_programs(1) + run) * D + d, total, mask=inside)
