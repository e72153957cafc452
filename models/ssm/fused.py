"""The chunked form of `models.ssm.chunked` as one kernel forward and one backward: what surrounds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from models.ssm.forms import FUSED_CHUNK
from models.ssm.fused_kernels import conv_backward_kernel, conv_kernel
from models.ssm.fused_table_kernels import chain_rule_kernel, tables_kernel
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
    """Modes (directions, H, n) and D (streams, H).

    A phase counts only modulo one turn, and l times its 16 leading bits is exact: no tap loses accuracy. Nor does the
    carry, which errs once per chunk: it is made in float64.
    """
    tables, n = empty_tables(modes, skip), modes.a_re.shape[-1]
    parts = (*(part.contiguous() for part in modes), skip.contiguous())
    _start(tables_kernel, (skip.shape[1],), (*parts, *tables, n), tables)
    return tables


def empty_tables(modes: Modes, skip: Tensor) -> FusedTables:
    """`fused_tables` without the numbers."""
    filters = skip.new_empty(*skip.shape, 2 * FUSED_CHUNK - 1, dtype=torch.float32)
    return FusedTables(filters, skip.new_empty(*modes.a_re.shape[:2], 7, modes.a_re.shape[2], dtype=torch.float32))


def fused_conv(x: Tensor, tables: FusedTables) -> Tensor:
    """x (H, B, L) in any strides -> (streams, H, B, L) in its dtype."""
    (h, b, length), (streams, directions) = x.shape, (len(tables.filters), len(tables.modes))
    layout = launch(b, backward=False)
    y = x.new_empty(streams, h, b, length)
    blocks = triton.cdiv(b, layout.rows)
    waiting = _scratch(x, blocks * layout.rows, tables.modes.shape[-1]) if directions > streams else y
    arguments = (x, *tables, y, waiting, b, length, *x.stride(), tables.modes.shape[-1])
    _start(conv_kernel, (h, blocks), arguments, tables, R=layout.rows, num_warps=layout.warps)
    return y


def fused_conv_backward(grad: Tensor, x: Tensor, tables: FusedTables) -> tuple[Tensor, Modes, Tensor]:
    """Gradients of x (H, B, L), of the modes and of the skip, from that of y (streams, H, B, L)."""
    (h, b, length), (streams, directions) = x.shape, (len(tables.filters), len(tables.modes))
    n, layout = tables.modes.shape[-1], launch(b, backward=True)
    grad_x = x.new_empty(x.shape)
    products = tables.filters.new_empty(streams, h, FUSED_CHUNK, FUSED_CHUNK)  # x^T dy within a chunk
    moments = tables.modes.new_empty(directions, h, 4, n)  # of order 0 and 1 between chunks, each real then imaginary
    tensors = (x, grad, *tables, grad_x, _scratch(x, layout.rows, n), products, moments)
    arguments = (*tensors, b, length, *x.stride(), *grad.stride(), n)
    _start(conv_backward_kernel, (h,), arguments, tables, R=layout.rows, num_warps=layout.warps)
    grad_modes = Modes(*(moments.new_empty(directions, h, n) for _ in Modes._fields))
    grad_skip = products.new_empty(streams, h)
    _start(chain_rule_kernel, (h,), (products, moments, tables.modes, *grad_modes, grad_skip, n), tables)
    return grad_x, grad_modes, grad_skip


def _start(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], tables: FusedTables, **layout: int) -> None:
    """Queue a kernel."""
    with torch.cuda.device_of(tables.modes):  # where Triton launches; nothing on a CPU
        kernel[grid](
            *arguments,
            C=FUSED_CHUNK,
            N=padded_modes(tables.modes.shape[-1]),
            DIRECTIONS=len(tables.modes),
            STREAMS=len(tables.filters),
            **layout,
        )


def _scratch(x: Tensor, rows: int, n: int) -> Tensor:
    """States between the two sweeps over a channel, (H, K, 2, N, rows): as large as x with N = 32."""
    return x.new_empty(len(x), triton.cdiv(x.shape[-1], FUSED_CHUNK), 2, padded_modes(n), rows)
