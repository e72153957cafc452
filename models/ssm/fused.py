"""The chunked form of `models.ssm.chunked` as one kernel forward and one backward: what surrounds them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from models.ssm.chunked import chunk_filters, mode_gradients
from models.ssm.conv import diagonal_sums
from models.ssm.forms import FUSED_CHUNK
from models.ssm.fused_kernels import conv_backward_kernel, conv_kernel
from models.ssm.kernel import Modes

LEAST = 16
"""The smallest side of a product that the matrix units take: fewer rows or modes are padded."""


class FusedTables(NamedTuple):
    """All that the kernels read about the parameters, in float32."""

    filters: Tensor  # the taps that one chunk sees, D included, (streams, H, 2C-1)
    modes: Tensor  # (directions, H, 7, n): Re a, Im a / 2 pi in two parts, 2c, exp(a C)


class Launch(NamedTuple):
    """How a kernel is laid out for a batch."""

    rows: int
    warps: int


def launch(batch: int, backward: bool) -> Launch:
    """Few warps let programs share a processor; the sums of a full backward do not fit four warps' registers."""
    rows = max(LEAST, min(64, triton.next_power_of_2(batch)))
    return Launch(rows, 8 if backward and rows > 16 else 4)


def padded_modes(n: int) -> int:
    return max(LEAST, triton.next_power_of_2(n))


def fused_tables(modes: Modes, skip: Tensor) -> FusedTables:
    """A phase counts only modulo one turn, and l times its 16 leading bits is exact: no tap loses accuracy.

    Nor does the carry, which errs once per chunk: it is made in float64.
    """
    turns = modes.a_im.double() / (2 * math.pi)
    turns = turns - turns.round()
    high = (turns * 2**16).round() / 2**16
    carry = torch.exp(torch.complex(modes.a_re.double(), 2 * math.pi * turns) * FUSED_CHUNK)
    parts = (modes.a_re, high, turns - high, 2 * modes.c_re, 2 * modes.c_im, carry.real, carry.imag)
    packed = torch.stack([part.float() for part in parts], dim=2)
    return FusedTables(chunk_filters(modes, skip, FUSED_CHUNK).contiguous(), packed)


def fused_conv(x: Tensor, tables: FusedTables) -> Tensor:
    """x (H, B, L) in any strides -> (streams, H, B, L) in its dtype."""
    (h, b, length), (streams, directions) = x.shape, (len(tables.filters), len(tables.modes))
    layout = launch(b, backward=False)
    y = x.new_empty(streams, h, b, length)
    blocks = triton.cdiv(b, layout.rows)
    waiting = _scratch(x, blocks * layout.rows, tables.modes.shape[-1]) if directions > streams else y
    _start(conv_kernel, (h, blocks), (x, *tables, y, waiting), x.stride(), tables, layout)
    return y


def fused_conv_backward(grad: Tensor, x: Tensor, modes: Modes, tables: FusedTables) -> tuple[Tensor, Modes, Tensor]:
    """Gradients of x (H, B, L), of the modes and of the skip, from that of y (streams, H, B, L)."""
    h, (streams, directions), n = len(x), (len(tables.filters), len(tables.modes)), tables.modes.shape[-1]
    layout = launch(x.shape[1], backward=True)
    grad_x = x.new_empty(x.shape)
    products = tables.filters.new_empty(streams, h, FUSED_CHUNK, FUSED_CHUNK)  # x^T dy within a chunk
    moments = tables.modes.new_empty(directions, h, 4, n)  # of order 0 and 1, each real then imaginary
    tensors = (x, grad, *tables, grad_x, _scratch(x, layout.rows, n), products, moments)
    _start(conv_backward_kernel, (h,), tensors, (*x.stride(), *grad.stride()), tables, layout)
    grad_filters = torch.stack([diagonal_sums(product) for product in products])
    moment_0, moment_1 = (torch.complex(moments[:, :, i], moments[:, :, i + 1]) for i in (0, 2))
    return grad_x, *mode_gradients(grad_filters, moment_0, moment_1, modes)


def _start(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: tuple[Tensor, ...],
    strides: tuple[int, ...],
    tables: FusedTables,
    layout: Launch,
) -> None:
    """Queue a kernel: its tensors, of which the first is x, and the strides of those that it reads."""
    x, n = tensors[0], tables.modes.shape[-1]
    with torch.cuda.device_of(x):  # where Triton launches; nothing on a CPU
        kernel[grid](
            *(*tensors, *x.shape[1:], *strides, n),
            C=FUSED_CHUNK,
            R=layout.rows,
            N=padded_modes(n),
            DIRECTIONS=len(tables.modes),
            STREAMS=len(tables.filters),
            num_warps=layout.warps,
        )


def _scratch(x: Tensor, rows: int, n: int) -> Tensor:
    """States between the two sweeps over a channel, (H, K, 2, N, rows): as large as x with N = 32."""
    return x.new_empty(len(x), triton.cdiv(x.shape[-1], FUSED_CHUNK), 2, padded_modes(n), rows)
