"""Triton kernels of what surrounds the fused convolution: its tables, and the chain rule from its sums to the modes.

A program owns a channel, all directions of it. In place of some 120 launches on small tensors.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tables_kernel(
    a_re,  # (DIRECTIONS, H, n), and so are a_im, c_re, c_im
    a_im,
    c_re,
    c_im,
    skip,  # (STREAMS, H)
    filters,  # (STREAMS, H, 2C-1)
    packed,  # (DIRECTIONS, H, 7, n)
    n,
    C: tl.constexpr,
    N: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    STREAMS: tl.constexpr,
):
    """Filters of one chunk with D in them, and the modes as `models.ssm.fused.FusedTables` has them."""
    channel, channels = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    step, j = tl.arange(0, C), tl.arange(0, N)
    centre = tl.load(skip + channel).to(tl.float32)
    for WAY in tl.static_range(DIRECTIONS):
        at, place = (WAY * channels + channel) * n + j, packed + (WAY * channels + channel) * 7 * n + j
        decay, high, low = _turned(a_re + at, a_im + at, j < n)
        weight_re = 2 * tl.load(c_re + at, mask=j < n, other=0.0).to(tl.float32)
        weight_im = 2 * tl.load(c_im + at, mask=j < n, other=0.0).to(tl.float32)
        carry_re, carry_im = _carry_over(decay, high + low, C)
        tl.store(place, decay.to(tl.float32), mask=j < n)
        tl.store(place + n, high.to(tl.float32), mask=j < n)
        tl.store(place + 2 * n, low.to(tl.float32), mask=j < n)
        tl.store(place + 3 * n, weight_re, mask=j < n)
        tl.store(place + 4 * n, weight_im, mask=j < n)
        tl.store(place + 5 * n, carry_re.to(tl.float32), mask=j < n)
        tl.store(place + 6 * n, carry_im.to(tl.float32), mask=j < n)

        re, im = _powers_of(decay, high, low, step)
        taps = tl.sum(re * weight_re[None, :] - im * weight_im[None, :], axis=1)  # (C,)
        middle = filters + ((WAY if STREAMS == 2 else 0) * channels + channel) * (2 * C - 1) + C - 1
        if STREAMS == 2 or DIRECTIONS == 1:
            own = tl.load(skip + (WAY if STREAMS == 2 else 0) * channels + channel).to(tl.float32)
            tl.store(middle + (-step if WAY else step), tl.where(step == 0, taps + own, taps))
            tl.store(middle + (step if WAY else -step), tl.zeros((C,), tl.float32), mask=step > 0)
        else:
            tl.store(middle + (-step if WAY else step), taps, mask=step > 0)
            centre += tl.sum(tl.where(step == 0, taps, 0.0), axis=0)
    if DIRECTIONS > STREAMS:
        tl.store(filters + channel * (2 * C - 1) + C - 1, centre)


@triton.jit
def chain_rule_kernel(
    products,  # (STREAMS, H, C, C): sum of x dy^T, input token first
    moments,  # (DIRECTIONS, H, 4, n): of order 0 and 1 between chunks
    packed,  # (DIRECTIONS, H, 7, n)
    grad_a_re,  # (DIRECTIONS, H, n), and so are the next three
    grad_a_im,
    grad_c_re,
    grad_c_im,
    grad_skip,  # (STREAMS, H)
    n,
    C: tl.constexpr,
    N: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    STREAMS: tl.constexpr,
):
    """`models.ssm.chunked.mode_gradients`: with r[l] the sum along a diagonal, dL = 2 Re(dc m_0 + c da m_1)."""
    channel, channels = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    step, token, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :], tl.arange(0, N)
    for WAY in tl.static_range(DIRECTIONS):
        stream = WAY if STREAMS == 2 else 0
        corner = products + (stream * channels + channel) * C * C
        apart = token * (C + 1) + step * (C if WAY else 1)  # [token, token + step], or the mirror image
        along = tl.sum(tl.load(corner + apart, mask=token + step < C, other=0.0), axis=1)  # r, (C,)
        if WAY < STREAMS:
            first = tl.sum(tl.where(tl.arange(0, C) == 0, along, 0.0), axis=0)
            tl.store(grad_skip + stream * channels + channel, first)
        mode = packed + (WAY * channels + channel) * 7 * n + j
        decay, high = tl.load(mode, mask=j < n, other=0.0), tl.load(mode + n, mask=j < n, other=0.0)
        low = tl.load(mode + 2 * n, mask=j < n, other=0.0)
        re, im = _powers_of(decay, high, low, tl.arange(0, C))
        re, im = re * along[:, None], im * along[:, None]
        place = moments + (WAY * channels + channel) * 4 * n + j
        moment_0_re = tl.sum(re, axis=0) + tl.load(place, mask=j < n, other=0.0)
        moment_0_im = tl.sum(im, axis=0) + tl.load(place + n, mask=j < n, other=0.0)
        moment_1_re = tl.sum(re * step, axis=0) + tl.load(place + 2 * n, mask=j < n, other=0.0)
        moment_1_im = tl.sum(im * step, axis=0) + tl.load(place + 3 * n, mask=j < n, other=0.0)
        weight_re = tl.load(mode + 3 * n, mask=j < n, other=0.0)  # of 2c
        weight_im = tl.load(mode + 4 * n, mask=j < n, other=0.0)
        at = (WAY * channels + channel) * n + j
        tl.store(grad_a_re + at, weight_re * moment_1_re - weight_im * moment_1_im, mask=j < n)
        tl.store(grad_a_im + at, -(weight_re * moment_1_im + weight_im * moment_1_re), mask=j < n)
        tl.store(grad_c_re + at, 2 * moment_0_re, mask=j < n)
        tl.store(grad_c_im + at, -2 * moment_0_im, mask=j < n)


@triton.jit
def _turned(a_re, a_im, inside):
    """Re a, and Im a / 2 pi modulo one turn in two parts, in float64: the 16 leading bits, and the rest."""
    decay = tl.load(a_re, mask=inside, other=0.0).to(tl.float64)
    turns = tl.load(a_im, mask=inside, other=0.0).to(tl.float64) / 6.283185307179586
    turns -= tl.floor(turns + 0.5)
    high = tl.floor(turns * 65536 + 0.5) / 65536
    return decay, high, turns - high


@triton.jit
def _carry_over(decay, turns, C: tl.constexpr):
    """exp(a C), in float64: it errs once per chunk."""
    size = tl.exp(decay * C)
    return size * _cosine(turns * C), size * _cosine(turns * C - 0.25)


@triton.jit
def _powers_of(decay, high, low, step):
    """exp(a l), real and imaginary part, (steps, modes) each in float32: a phase counts modulo one turn."""
    steps = step[:, None].to(tl.float32)
    size = tl.exp(decay.to(tl.float32)[None, :] * steps)
    turns = high.to(tl.float32)[None, :] * steps  # exact
    turns = turns - tl.floor(turns + 0.5) + low.to(tl.float32)[None, :] * steps
    return size * _cosine(turns), size * _cosine(turns - 0.25)


@triton.jit
def _cosine(turns):
    """cos(2 pi turns) = 1 - 2 sin(z)^2 with |z| <= pi / 2, by a series that is exact to 1e-10 there."""
    z = 3.141592653589793 * (turns - tl.floor(turns + 0.5))
    q = z * z
    sine = 1 - q / 110 * (1 - q / 156 * (1 - q / 210 * (1 - q / 272)))
    sine = z * (1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72 * sine))))
    return 1 - 2 * sine * sine
