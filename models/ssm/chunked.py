"""S4D's convolution in chunks of C tokens: real matrix products and a short recurrence, no transforms.

With lambda = exp(a), x_i (B, C) the i-th chunk of a channel and h_i (B, n) the states that enter it, one
direction of S4D (Gu et al. 2022, eq. 3) is

    y_i = x_i T + 2 Re(h_i Q)        h_{i+1} = lambda^C h_i + x_i P
    T[q, p] = k[p - q]               P[q] = lambda^(C-1-q)        Q[p] = c lambda^(p+1)

and the other direction is its mirror image: T[q, p] = k[q - p], P[q] = lambda^q, Q[p] = c lambda^(C-p),
with states that come from the later chunks. A complex mode is two real columns, so every product is real.

The gradient of x is the same form with T transposed, P and Q exchanged and the directions reversed. Those of
the modes follow from four sums over batch and chunks, whose sizes depend on neither: x^T dy along its
diagonals (the taps of T), dy^T h, x^T g and h g, where g are the states of that reversed form.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.ssm.conv import diagonal_sums, toeplitz, two_sided, two_sided_backward
from models.ssm.kernel import Modes, integer_powers, power_tables, split_kernel, split_kernel_backward

CHUNK = 128
"""Tokens per chunk: 2C + 8S operations per output against 10 + 16 S/C bytes, least together near 128."""


class ChunkTables(NamedTuple):
    """Constants of a channel, from the modes and the skip alone; `into` and `out` are P and lambda^., both complex."""

    matrices: Tensor  # T, (streams, H, C, C)
    into: Tensor  # P, (directions, H, C, n)
    out: Tensor  # Q / c, (directions, H, C, n)
    weights: Tensor  # 2c, (directions, H, 1, n)
    carry: Tensor  # lambda^C, (directions, H, 1, n)

    def reversed(self) -> ChunkTables:
        """The tables of the gradient of x."""
        return self._replace(matrices=self.matrices.mT, into=self.out, out=self.into)


def chunk_length(length: int) -> int:
    """All of a short sequence: then no state is ever carried, and the form is one Toeplitz product."""
    return min(length, CHUNK)


def chunk_tables(modes: Modes, skip: Tensor, chunk: int) -> ChunkTables:
    """Modes (directions, H, n) and D (streams, H), in the dtype of the computation."""
    filters = chunk_filters(modes, skip, chunk)
    powers = integer_powers(modes, chunk + 1)  # (directions, H, C+1, n)
    early, late = powers[:, :, :-1], powers[:, :, 1:]
    into = torch.cat([early[:1].flip(2), early[1:]])
    out = torch.cat([late[:1], late[1:].flip(2)])
    weights = torch.complex(2 * modes.c_re, 2 * modes.c_im)[:, :, None]
    return ChunkTables(toeplitz(filters), into, out, weights, powers[:, :, -1:])


def chunk_filters(modes: Modes, skip: Tensor, chunk: int) -> Tensor:
    """The taps that one chunk sees, (streams, H, 2C-1): tap C-1+d weighs the token d steps earlier."""
    return two_sided(split_kernel(modes, power_tables(modes, chunk), chunk), skip)


def chunked_conv(x: Tensor, tables: ChunkTables) -> Tensor:
    """x (H, B, L) -> (streams, H, B, L), both in x's dtype; states are float32 at least."""
    rows = cut(x, tables.matrices.shape[-1])  # (H, B, K, C)
    if rows.shape[2] == 1:
        return torch.stack([join(torch.bmm(rows[:, :, 0], matrix), x) for matrix in tables.matrices.to(x.dtype)])
    states = [_real(s).to(x.dtype) for s in entering_states(rows, tables)]  # each (H, B, K, 2n)
    out = _interleaved_conjugate(tables.out * tables.weights).mT.to(x.dtype)  # (directions, H, 2n, C)
    streams = []
    for stream, matrix in enumerate(tables.matrices.to(x.dtype)):
        ways = _ways(stream, tables)
        # One product per stream, so that a sum in half precision is rounded once.
        left = torch.cat([rows, *(states[way] for way in ways)], dim=-1).flatten(1, 2)
        streams.append(torch.bmm(left, torch.cat([matrix, *(out[way] for way in ways)], dim=1)))
    return torch.stack([join(y, x) for y in streams])


def chunked_conv_backward(grad: Tensor, x: Tensor, modes: Modes, tables: ChunkTables) -> tuple[Tensor, Modes, Tensor]:
    """Gradients of x (H, B, L), of the modes and of the skip, from that of y (streams, H, B, L)."""
    chunk = tables.matrices.shape[-1]
    rows, grads = cut(x, chunk), [cut(g, chunk) for g in grad]  # (H, B, K, C) each
    mirror = tables.reversed()
    back = _interleaved_conjugate(mirror.out * tables.weights).mT.to(x.dtype)  # (directions, H, 2n, C)
    grad_x = torch.zeros_like(x)
    for g, matrix in zip(grads, mirror.matrices.to(x.dtype), strict=True):
        grad_x += join(torch.bmm(g.flatten(1, 2), matrix), x)
    grad_filters = torch.stack([diagonal_sums(_product(rows, g)) for g in grads])
    states = entering_states(rows, tables)
    moments = []
    for way, state in enumerate(states):
        g = grads[min(way, len(grads) - 1)]
        adjoint = leaving_states(g, mirror, way)
        grad_x += join(torch.bmm(_real(adjoint).to(x.dtype).flatten(1, 2), back[way]), x)
        moments.append(_moments(rows, g, state, adjoint, tables, way))
    moment_0, moment_1 = (torch.stack(each) for each in zip(*moments, strict=True))
    grad_modes, grad_skip = mode_gradients(grad_filters, moment_0, moment_1, modes)
    return grad_x, grad_modes, grad_skip


def mode_gradients(grad_filters: Tensor, moment_0: Tensor, moment_1: Tensor, modes: Modes) -> tuple[Modes, Tensor]:
    """From what the taps within chunks (streams, H, 2C-1) and the states between them (directions, H, n) say.

    With r[l] = sum_i dy[i] x[i-l], the loss changes by 2 Re(dc m_0 + c da m_1), the moments being
    m_k = sum_l l^k r[l] lambda^l: here over pairs of tokens in different chunks, and by the kernel for the rest.
    """
    grad_kernels, grad_skip = two_sided_backward(grad_filters, len(modes.a_re))
    within = split_kernel_backward(grad_kernels, modes, power_tables(modes, grad_kernels.shape[-1]))
    grad_c, grad_a = 2 * moment_0, 2 * torch.complex(modes.c_re, modes.c_im) * moment_1
    between = Modes(grad_a.real, -grad_a.imag, grad_c.real, -grad_c.imag)
    return Modes(*(a + b for a, b in zip(within, between, strict=True))), grad_skip


def entering_states(rows: Tensor, tables: ChunkTables) -> list[Tensor]:
    """The complex states of each direction that enter each chunk, (H, B, K, n)."""
    return [_carried(rows, tables.into[way], tables.carry[way], way == 1) for way in range(len(tables.into))]


def leaving_states(grads: Tensor, mirror: ChunkTables, way: int) -> Tensor:
    """Their adjoints: what follows each chunk, weighed as the state that leaves it will be (but for c)."""
    return _carried(grads, mirror.into[way], mirror.carry[way], way == 0)


def _carried(rows: Tensor, into: Tensor, carry: Tensor, later: bool) -> Tensor:
    """h_{i+1} = carry h_i + x_i P over the chunks, or from the last of them."""
    b, count = rows.shape[1:3]
    added = _wide_product(rows.flatten(1, 2), _real(into).to(rows.dtype)).unflatten(1, (b, count))
    added = _complex(added, into)  # (H, B, K, n)
    states = torch.zeros_like(added)
    for here, following in pairwise(range(count)[:: -1 if later else 1]):
        torch.addcmul(added[:, :, here], carry, states[:, :, here], out=states[:, :, following])
    return states


def _moments(
    rows: Tensor, grads: Tensor, state: Tensor, adjoint: Tensor, tables: ChunkTables, way: int
) -> tuple[Tensor, Tensor]:
    """The moments of order 0 and 1 of one direction, (H, n), over pairs of tokens in different chunks.

    The steps between such a pair are those after entering the later chunk (steps_out), those before leaving
    the earlier one (steps_in), and C for each chunk that the state is carried through.
    """
    chunk = rows.shape[-1]
    into, out, carry = tables.into[way], tables.out[way], tables.carry[way]
    ahead = torch.arange(chunk, device=rows.device, dtype=into.real.dtype)[:, None]
    steps_in, steps_out = (chunk - 1 - ahead, 1 + ahead) if way == 0 else (ahead, chunk - ahead)
    read = out * _complex(_product(grads, _real(state).to(rows.dtype)), into)  # (H, C, n), times lambda^steps_out
    write = into * _complex(_product(rows, _real(adjoint).to(rows.dtype)), into)
    passed = chunk * carry[:, 0] * (state * adjoint).sum((1, 2))
    return read.sum(1), (steps_out * read + steps_in * write).sum(1) + passed


def cut(x: Tensor, chunk: int) -> Tensor:
    """(H, B, L) -> (H, B, K, C), zeros after the end."""
    return pad(x, (0, -x.shape[-1] % chunk)).unflatten(-1, (-1, chunk))


def join(y: Tensor, like: Tensor) -> Tensor:
    """(H, B K, C) -> (H, B, L), the inverse of `cut`."""
    h, b, length = like.shape
    return y.reshape(h, b, -1)[..., :length]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """The sum over batch and chunks of (H, B, K, p) and (H, B, K, q), (H, p, q)."""
    return _wide_product(left.flatten(1, 2).mT, right.flatten(1, 2))


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Factors in half precision, their product not: float32 at least."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.bmm(left, right, out_dtype=torch.float32)
    wide = torch.promote_types(left.dtype, torch.float32)
    return torch.bmm(left.to(wide), right.to(wide))


def _ways(stream: int, tables: ChunkTables) -> list[int]:
    """Directions that meet in a stream."""
    return [stream] if len(tables.matrices) == len(tables.into) else list(range(len(tables.into)))


def _real(z: Tensor) -> Tensor:
    return torch.view_as_real(z).flatten(-2)


def _interleaved_conjugate(z: Tensor) -> Tensor:
    """Rows that turn interleaved states into Re(sum z h)."""
    return _real(torch.conj_physical(z))


def _complex(x: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(x.to(like.real.dtype).unflatten(-1, (-1, 2)))
