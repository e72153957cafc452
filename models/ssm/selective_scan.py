"""Mamba's selective scan (Gu & Dao, arXiv:2312.00752, section 3): a linear recurrence whose rates follow the input.

    h_l = exp(dt_l A) h_{l-1} + dt_l u_l B_l        y_l = <C_l, h_l> + D u_l

per channel, with N states each. `selective_scan` runs it on any device in chunks of about sqrt(L) tokens:
all chunks advance together from a zero state, a short recurrence over chunks gives the state that enters
each, and a second sweep starts from there. Every exponent is non-positive, so nothing overflows and nothing
is rescaled. `selective_scan_loop` is the textbook form, for reading and for comparing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, silu
from torch.nn.functional import softplus as softplus_of
from torch.utils.flop_counter import register_flop_formula

from models.denoiser import require
from models.layers.derivatives import refuse_second, refuse_tangents

# States alive at once, B x E x N x L of one tile: what a cache holds, or a modest share of a GPU.
TILE_STATES_CPU, TILE_STATES_GPU = 2**19, 2**26

Core = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""The recurrence alone: u, dt (B, E, L); A (E, N); B, C (B, G, N, L); D (E), all of one dtype -> y (B, E, L)."""


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    softplus: bool = True,
    core: Core | None = None,
) -> Tensor:
    """u, delta, z (B, E, L); A (E, N), negative; B, C (B, N, L) or (B, G, N, L); D, delta_bias (E) -> (B, E, L).

    dt = softplus(delta + delta_bias); the result is gated by silu(z). Inside it is float32 (float64 for
    float64 inputs) under any autocast; the result has the dtype of u. On a GPU the kernel of `mamba_ssm`
    does the same where it is installed. `core`: another recurrence than the fastest there is.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    refuse_tangents("ssm::selective_scan", u, delta, A, B, C, D, z, delta_bias)
    kernel = _cuda_kernel() if u.is_cuda and u.dtype != torch.float64 and core is None else None
    if kernel is not None:
        delta, B, C = (x.to(u.dtype) for x in (delta, B, C))
        gate = None if z is None else z.to(u.dtype)
        skip, bias = (None if x is None else x.float() for x in (D, delta_bias))
        return kernel(u, delta, A.float(), B, C, skip, gate, bias, softplus)
    work = torch.promote_types(u.dtype, torch.float32)
    # Contiguous, because traced and eager softplus give a strided input gradients of different strides.
    dt = delta.to(work).contiguous()
    dt = dt if delta_bias is None else dt + delta_bias.to(work)[:, None]
    dt = softplus_of(dt) if softplus else dt
    D = u.new_zeros(u.shape[1]) if D is None else D
    B, C = (x if x.ndim == 4 else x[:, None] for x in (B, C))
    y = (core or _in_chunks)(*(x.to(work) for x in (u, dt, A, B, C, D)))
    return (y if z is None else y * silu(z.to(work))).to(u.dtype)


def _token_by_token(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The textbook form of the core."""
    B, C = (x if x.shape[1] == 1 else x.repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in (B, C))
    decay = torch.exp(dt[:, :, None] * A[:, :, None])  # (B, E, N, L)
    push = (dt * u)[:, :, None] * B
    state, outputs = torch.zeros_like(decay[..., 0]), []
    for rate, gain, read in zip(decay.unbind(-1), push.unbind(-1), C.unbind(-1), strict=True):
        state = rate * state + gain
        outputs.append((state * read).sum(-1))
    return torch.stack(outputs, dim=-1) + D[:, None] * u


selective_scan_loop = partial(selective_scan, core=_token_by_token)
"""For reading and for comparing."""


def scan_macs(length: int, channels: int, states: int) -> int:
    """MACs of one scan of one sequence: 9/2 L E N, and L E for the D skip.

    9 L E N floating-point operations is the count of the Mamba and VMamba repositories (exponential,
    two products and two multiply-adds of the state, contraction with C). Another common unit is L E N per
    multiply-add or product on the state, three in all and no D skip: it gives 2/3 of the states' share.
    """
    return 9 * length * channels * states // 2 + length * channels


@cache
def _cuda_kernel() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    return selective_scan_fn


def _in_chunks(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return _scan(u, dt, A, B, C, D)[0]


# The fast core is one opaque operator. L splits into K chunks of c tokens. Inside, tokens come first and channels last,
# so that one product advances all chunks over long contiguous runs: tokens (K, c, B, E), states (K, c, B, N, E).


@torch.library.custom_op("ssm::selective_scan", mutates_args=())
def _scan(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, E, L), and the state that enters each chunk (K, B, N, E): all that the backward keeps."""
    steps, gains, Bs, Cs = (_chunked(x) for x in (dt, u, B, C))
    gains *= steps
    y, entering = torch.empty_like(steps), u.new_empty(_entering_shape(u, A))
    with torch.autocast(u.device.type, enabled=False):
        for rows, group, channels in _tiles(u, A, B):
            at = (..., rows, channels)
            rates = A[channels].T.contiguous()
            decay = torch.exp(steps[at][..., None, :] * rates)  # (K, c, b, N, e)
            states = gains[at][..., None, :] * Bs[..., rows, group, :, None]
            total = torch.exp(steps[at].sum(1)[..., None, :] * rates)
            start = _enter_chunks(_fold(decay.unbind(1), states.unbind(1)), total)
            _sweep(decay.unbind(1), states.unbind(1), start)
            entering[:, rows, :, channels] = start
            y[at] = (Cs[..., rows, group, None, :] @ states).squeeze(-2)
    return _sequence(y, u.shape[-1]).addcmul_(D[:, None], u), entering


@torch.library.custom_op("ssm::selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, entering: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, dt, A, B, C, D. States are swept again from `entering`; their adjoints obey

    g_l = C_l dy_l + exp(dt_{l+1} A) g_{l+1}, the same recurrence from the other end.
    """
    steps, gains, Bs, Cs, dys = (_chunked(x) for x in (dt, u, B, C, dy))
    gains *= steps
    later = torch.cat([steps[:, 1:], pad(steps[1:, :1], (0, 0) * 3 + (0, 1))], dim=1)  # the step out of each token
    d_steps, d_gains = torch.empty_like(steps), torch.empty_like(steps)
    dA, dB, dC = A.new_zeros(A.shape), torch.zeros_like(Bs), torch.zeros_like(Cs)
    with torch.autocast(u.device.type, enabled=False):
        for rows, group, channels in _tiles(u, A, B):
            at, per_state = (..., rows, channels), (..., rows, group, slice(None))
            rates, step, start = A[channels].T.contiguous(), steps[at][..., None, :], entering[:, rows, :, channels]
            decay = torch.exp(step * rates)  # (K, c, b, N, e)
            states = gains[at][..., None, :] * Bs[per_state][..., None]
            _sweep(decay.unbind(1), states.unbind(1), start)
            scratch = states * dys[at][..., None, :]  # and sum: faster than as many small matrix-vector products
            dC[per_state] += scratch.sum(-1)

            adjoint = dys[at][..., None, :] * Cs[per_state][..., None]
            total = torch.exp(later[at].sum(1)[..., None, :] * rates)
            out_of_chunk = pad(decay[1:, 0], (0, 0) * 3 + (0, 1))
            backwards = (out_of_chunk, *decay[:, 1:].unbind(1)[::-1]), adjoint.unbind(1)[::-1]
            _sweep(*backwards, _enter_chunks(_fold(*backwards), total, reverse=True))
            dB[per_state] += torch.mul(adjoint, gains[at][..., None, :], out=scratch).sum(-1)
            d_gains[at] = (Bs[per_state][..., None, :] @ adjoint).squeeze(-2)

            # d(dt A) = g_l exp(dt A) h_{l-1}, in place of the decay.
            decay[:, 1:] *= states[:, :-1]
            decay[:, 0] *= start
            decay *= adjoint
            d_steps[at] = torch.mul(decay, rates, out=scratch).sum(-2)
            dA[channels] += decay.mul_(step).sum((0, 1, 2)).T
    length = u.shape[-1]
    d_gain = _sequence(d_gains, length)
    ddt = _sequence(d_steps, length).addcmul_(d_gain, u)
    du = d_gain.mul_(dt).addcmul_(D[:, None], dy)
    return du, ddt, dA, _sequence(dB, length), _sequence(dC, length), (dy * u).sum((0, 2))


def _fold(decay: Sequence[Tensor], push: Sequence[Tensor]) -> Tensor:
    """Every chunk from a zero state to its last position: (K, b, N, e)."""
    state = push[0].clone()
    for rate, gain in zip(decay[1:], push[1:], strict=True):
        torch.addcmul(gain, rate, state, out=state)
    return state


def _enter_chunks(local: Tensor, total: Tensor, reverse: bool = False) -> Tensor:
    """The state that enters each chunk, from what each adds (`local`) and how it decays (`total`)."""
    entering = torch.zeros_like(local)
    order = range(len(local))[:: -1 if reverse else 1]
    for chunk, following in pairwise(order):
        torch.addcmul(local[chunk], total[chunk], entering[chunk], out=entering[following])
    return entering


def _sweep(decay: Sequence[Tensor], push: Sequence[Tensor], state: Tensor) -> None:
    """Every chunk from the state that enters it; `push` becomes the states."""
    for rate, gain in zip(decay, push, strict=True):
        state = torch.addcmul(gain, rate, state, out=gain)


def _chunk_sizes(length: int) -> tuple[int, int]:
    """Tokens per chunk and number of chunks."""
    c = math.isqrt(length - 1) + 1
    return c, -(-length // c)


def _chunked(x: Tensor) -> Tensor:
    """(B, ..., L) -> (K, c, B, ...). A padded token has dt = 0: it keeps the state and adds nothing."""
    length = x.shape[-1]
    c, K = _chunk_sizes(length)
    tokens = x.new_zeros(K * c, *x.shape[:-1])
    tokens[:length].view(length, -1).copy_(x.reshape(-1, length).T)  # as a matrix: torch transposes those in blocks
    return tokens.unflatten(0, (K, c))


def _sequence(x: Tensor, length: int) -> Tensor:
    """The inverse of `_chunked`."""
    tokens = x.flatten(0, 1)[:length]
    return tokens.reshape(length, -1).T.contiguous().view(*tokens.shape[1:], length)


def _tiles(u: Tensor, A: Tensor, B: Tensor) -> Iterator[tuple[slice, int, slice]]:
    """Rows of the batch, group, channels: pieces whose states stay in fast memory, or one row of one channel."""
    (batch, channels, length), groups = u.shape, B.shape[1]
    budget = (TILE_STATES_CPU if u.device.type == "cpu" else TILE_STATES_GPU) // (length * A.shape[1])
    width = max(1, min(channels // groups, budget))
    height = max(1, min(batch, budget // width))
    for group in range(groups):
        first, last = group * channels // groups, (group + 1) * channels // groups
        for start in range(first, last, width):
            for row in range(0, batch, height):
                yield slice(row, row + height), group, slice(start, min(start + width, last))


def _entering_shape(u: Tensor, A: Tensor) -> tuple[int, int, int, int]:
    return _chunk_sizes(u.shape[-1])[1], u.shape[0], A.shape[1], u.shape[1]


@_scan.register_fake
def _(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(_entering_shape(u, A))


@_scan_backward.register_fake
def _(dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:6])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return _scan_backward(dy, *ctx.saved_tensors)


_scan.register_autograd(_backward, setup_context=_keep)
refuse_second("ssm::selective_scan", _scan_backward)


@register_flop_formula(torch.ops.ssm.selective_scan)
def _scan_flops(u: Sequence[int], dt: Sequence[int], A: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * u[0] * scan_macs(u[2], *A)


@register_flop_formula(torch.ops.ssm.selective_scan_backward)
def _scan_backward_flops(dy: Sequence[int], *inputs: Sequence[int], **_: Any) -> int:
    """Twice the forward, as for any product; the repeated sweep is not counted."""
    return 2 * _scan_flops(*inputs)


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, bias: Tensor | None
) -> None:
    require(u.ndim == 3 and u.shape[-1] > 0, "u.shape", tuple(u.shape), "(B, E, L) with L > 0")
    batch, channels, length = u.shape
    require(A.ndim == 2 and len(A) == channels, "A.shape", tuple(A.shape), f"(E, N) with E={channels}")
    shapes = {"delta": (delta, u.shape), "z": (z, u.shape), "D": (D, (channels,)), "delta_bias": (bias, (channels,))}
    for name, (x, shape) in shapes.items():
        if x is not None:
            require(x.shape == shape, f"{name}.shape", tuple(x.shape), str(tuple(shape)))
    plain, N = (batch, A.shape[1], length), A.shape[1]
    for name, x in (("B", B), ("C", C)):
        grouped = x.ndim == 4 and x.shape == (batch, x.shape[1], N, length) and channels % x.shape[1] == 0
        valid = f"{plain}, or {(batch, 'G', N, length)} with G a divisor of E={channels}"
        require(x.shape == plain or grouped, f"{name}.shape", tuple(x.shape), valid)
    require(B.shape == C.shape, "C.shape", tuple(C.shape), f"that of B, {tuple(B.shape)}")
