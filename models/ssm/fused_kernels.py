"""Triton kernels of the chunked form (`models.ssm.chunked` has its equations), on sequences (H, B, L).

A program owns a channel, forward also a block of rows. It makes its tables from the modes in float32, casts them
to the dtype of x for the matrix units, and carries the states in float32 from chunk to chunk. x is read once per
direction and every stream of y written once; two directions that are summed also leave states at rest, with N =
32 as many numbers as x, written and read once (docs/kernels.md has the bytes). A tile is (C signal, R rows), so
the C x C and C x 2n tables are the 64-row operand of every product and any batch gets the large matrix
instructions. Backward one program owns all rows of a channel: sums over the batch need no atomics and come out
the same every time.

bf16 is what they are for; float32 products, in three passes of tf32, only make them checkable.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def conv_kernel(
    x,  # (H, B, L)
    filters,  # (STREAMS, H, 2C-1)
    modes,  # (DIRECTIONS, H, 7, n)
    y,  # (STREAMS, H, B, L)
    waiting,  # (H, K, 2, N, rows): the states of the second direction, if it shares the first one's stream
    B,
    L,
    x_channel,
    x_row,
    x_token,
    n,
    C: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    STREAMS: tl.constexpr,
):
    channel, channels = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    count = tl.cdiv(L, C)
    tile = x.dtype.element_ty
    row = tl.program_id(1) * R + tl.arange(0, R)
    token = tl.arange(0, C)
    x += channel * x_channel
    y += channel * B * L
    at_rest = tl.program_id(1) * R + _mode_rows(N, R, tl.num_programs(1) * R)
    waiting += channel * count * 2 * N * tl.num_programs(1) * R
    held = 2 * N * tl.num_programs(1) * R  # per chunk

    if DIRECTIONS == 2:
        mode = modes + (channels + channel) * 7 * n
        into = _stacked_powers(mode, n, token, N).to(tile)
        out_re, out_im = _weighed_powers(mode, n, C - token, N)
        out_re, out_im = out_re.to(tile), out_im.to(tile)
        carry_re, carry_im = _carry(mode, n, N)
        state_re, state_im = tl.zeros((N, R), tl.float32), tl.zeros((N, R), tl.float32)
        if STREAMS == 2:
            matrix = _toeplitz(filters + (channels + channel) * (2 * C - 1), C).to(tile)
        for step in range(count):
            chunk = count - 1 - step
            signal = _load_tile(x, row, chunk * C + token, B, L, x_row, x_token)
            if STREAMS == 2:
                acc = tl.dot(matrix, signal, input_precision="tf32x3")
                acc = tl.dot(out_re, state_re.to(tile), acc, input_precision="tf32x3")
                acc = tl.dot(out_im, state_im.to(tile), acc, input_precision="tf32x3")
                _store_tile(y + channels * B * L, acc.to(tile), row, chunk * C + token, B, L)
            else:
                tl.store(waiting + chunk * held + at_rest, state_re.to(tile))
                tl.store(waiting + chunk * held + held // 2 + at_rest, state_im.to(tile))
            state_re, state_im = _advance(state_re, state_im, carry_re, carry_im, into, signal)
        tl.debug_barrier()

    mode = modes + channel * 7 * n
    into = _stacked_powers(mode, n, C - 1 - token, N).to(tile)
    out_re, out_im = _weighed_powers(mode, n, 1 + token, N)
    out_re, out_im = out_re.to(tile), out_im.to(tile)
    carry_re, carry_im = _carry(mode, n, N)
    state_re, state_im = tl.zeros((N, R), tl.float32), tl.zeros((N, R), tl.float32)
    matrix = _toeplitz(filters + channel * (2 * C - 1), C).to(tile)
    if DIRECTIONS > STREAMS:
        mode = modes + (channels + channel) * 7 * n
        late_re, late_im = _weighed_powers(mode, n, C - token, N)
        late_re, late_im = late_re.to(tile), late_im.to(tile)
    for chunk in range(count):
        signal = _load_tile(x, row, chunk * C + token, B, L, x_row, x_token)
        acc = tl.dot(matrix, signal, input_precision="tf32x3")
        acc = tl.dot(out_re, state_re.to(tile), acc, input_precision="tf32x3")
        acc = tl.dot(out_im, state_im.to(tile), acc, input_precision="tf32x3")
        if DIRECTIONS > STREAMS:
            acc = tl.dot(late_re, tl.load(waiting + chunk * held + at_rest), acc, input_precision="tf32x3")
            acc = tl.dot(late_im, tl.load(waiting + chunk * held + held // 2 + at_rest), acc, input_precision="tf32x3")
        _store_tile(y, acc.to(tile), row, chunk * C + token, B, L)
        state_re, state_im = _advance(state_re, state_im, carry_re, carry_im, into, signal)


@triton.jit
def conv_backward_kernel(
    x,  # (H, B, L)
    grad,  # (STREAMS, H, B, L)
    filters,  # (STREAMS, H, 2C-1)
    modes,  # (DIRECTIONS, H, 7, n)
    grad_x,  # (H, B, L)
    adjoints,  # (H, K, 2, N, R): g, before it is needed from the other end
    products,  # (STREAMS, H, C, C): sum of x dy^T, input token first
    moments,  # (DIRECTIONS, H, 4, n)
    B,
    L,
    x_channel,
    x_row,
    x_token,
    grad_stream,
    grad_channel,
    grad_row,
    grad_token,
    n,
    C: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    DIRECTIONS: tl.constexpr,
    STREAMS: tl.constexpr,
):
    channel, count = tl.program_id(0).to(tl.int64), tl.cdiv(L, C)
    x += channel * x_channel
    grad += channel * grad_channel
    grad_x += channel * B * L
    adjoints += channel * count * 2 * N * R + _mode_rows(N, R, R)
    for WAY in tl.static_range(DIRECTIONS):
        _one_way_backward(
            *(x, grad, filters, modes, grad_x, adjoints, products, moments),
            *(B, L, x_row, x_token, grad_stream, grad_row, grad_token, n),
            *(C, R, N, STREAMS, WAY),
        )


@triton.jit
def _one_way_backward(
    x,
    grad,
    filters,
    modes,
    grad_x,
    adjoints,
    products,
    moments,
    B,
    L,
    x_row,
    x_token,
    grad_stream,
    grad_row,
    grad_token,
    n,
    C: tl.constexpr,
    R: tl.constexpr,
    N: tl.constexpr,
    STREAMS: tl.constexpr,
    WAY: tl.constexpr,
):
    channel, channels, count = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.cdiv(L, C)
    tile = x.dtype.element_ty
    token = tl.arange(0, C)
    stream: tl.constexpr = WAY if STREAMS == 2 else 0
    alone: tl.constexpr = WAY < STREAMS  # else another direction has seen to this stream's taps
    steps_in = token if WAY else C - 1 - token
    steps_out = C - token if WAY else 1 + token
    mode = modes + (WAY * channels + channel) * 7 * n
    dy = grad + stream * grad_stream
    gather = _stacked_powers(mode, n, steps_out, N).to(tile)
    take = _stacked_powers(mode, n, steps_in, N).to(tile)
    emit_re, emit_im = _weighed_powers(mode, n, steps_in, N)
    emit_re, emit_im = emit_re.to(tile), emit_im.to(tile)
    carry_re, carry_im = _carry(mode, n, N)
    matrix = tl.trans(_toeplitz(filters + (stream * channels + channel) * (2 * C - 1), C)).to(tile)
    product = tl.zeros((C, C), tl.float32)
    read_re, read_im = tl.zeros((C, N), tl.float32), tl.zeros((C, N), tl.float32)
    write_re, write_im = tl.zeros((C, N), tl.float32), tl.zeros((C, N), tl.float32)
    passed_re, passed_im = tl.zeros((N,), tl.float32), tl.zeros((N,), tl.float32)

    for first in range(0, B, R):
        row = first + tl.arange(0, R)
        re, im = tl.zeros((N, R), tl.float32), tl.zeros((N, R), tl.float32)
        for step in range(count):
            chunk = step if WAY else count - 1 - step
            tl.store(adjoints + chunk * 2 * N * R, re.to(tile))
            tl.store(adjoints + (chunk * 2 + 1) * N * R, im.to(tile))
            grads = _load_tile(dy, row, chunk * C + token, B, L, grad_row, grad_token)
            re, im = _advance(re, im, carry_re, carry_im, gather, grads)
        tl.debug_barrier()
        re, im = tl.zeros((N, R), tl.float32), tl.zeros((N, R), tl.float32)
        for step in range(count):
            chunk = count - 1 - step if WAY else step
            signal = _load_tile(x, row, chunk * C + token, B, L, x_row, x_token)
            grads = _load_tile(dy, row, chunk * C + token, B, L, grad_row, grad_token)
            g_re = tl.load(adjoints + chunk * 2 * N * R)
            g_im = tl.load(adjoints + (chunk * 2 + 1) * N * R)
            dx = tl.dot(emit_re, g_re, input_precision="tf32x3")
            dx = tl.dot(emit_im, g_im, dx, input_precision="tf32x3")
            if alone:
                dx = tl.dot(matrix, grads, dx, input_precision="tf32x3")
                product = tl.dot(signal, tl.trans(grads), product, input_precision="tf32x3")
            if WAY:
                dx += _load_tile(grad_x, row, chunk * C + token, B, L, L, 1)
            _store_tile(grad_x, dx.to(tile), row, chunk * C + token, B, L)
            read_re = tl.dot(grads, tl.trans(re.to(tile)), read_re, input_precision="tf32x3")
            read_im = tl.dot(grads, tl.trans(im.to(tile)), read_im, input_precision="tf32x3")
            write_re = tl.dot(signal, tl.trans(g_re), write_re, input_precision="tf32x3")
            write_im = tl.dot(signal, tl.trans(g_im), write_im, input_precision="tf32x3")
            passed_re += tl.sum(re * g_re - im * g_im, axis=1)
            passed_im += tl.sum(re * g_im + im * g_re, axis=1)
            re, im = _advance(re, im, carry_re, carry_im, take, signal)
        tl.debug_barrier()

    if alone:
        corner = products + (stream * channels + channel) * C * C
        tl.store(corner + token[:, None] * C + token[None, :], product)
    out_re, out_im = _powers(mode, n, steps_out, N)
    in_re, in_im = _powers(mode, n, steps_in, N)
    read_re, read_im = out_re * read_re - out_im * read_im, out_re * read_im + out_im * read_re
    write_re, write_im = in_re * write_re - in_im * write_im, in_re * write_im + in_im * write_re
    through_re = C * tl.reshape(carry_re, (N,)) * passed_re - C * tl.reshape(carry_im, (N,)) * passed_im
    through_im = C * tl.reshape(carry_re, (N,)) * passed_im + C * tl.reshape(carry_im, (N,)) * passed_re
    late, early = steps_out[:, None].to(tl.float32), steps_in[:, None].to(tl.float32)
    moment_1_re = tl.sum(late * read_re + early * write_re, axis=0) + through_re
    moment_1_im = tl.sum(late * read_im + early * write_im, axis=0) + through_im
    j = tl.arange(0, N)
    place = moments + (WAY * channels + channel) * 4 * n + j
    tl.store(place, tl.sum(read_re, axis=0), mask=j < n)
    tl.store(place + n, tl.sum(read_im, axis=0), mask=j < n)
    tl.store(place + 2 * n, moment_1_re, mask=j < n)
    tl.store(place + 3 * n, moment_1_im, mask=j < n)


@triton.jit
def _advance(re, im, carry_re, carry_im, into, signal):
    """h lambda^C + x P, (N, R): re and im of a mode lie 8 rows apart in the product, in one thread's registers."""
    N: tl.constexpr = re.shape[0]
    R: tl.constexpr = re.shape[1]
    added = tl.dot(into, signal, input_precision="tf32x3")  # (2N, R)
    added = tl.permute(tl.reshape(added, (N // 8, 2, 8, R)), (0, 2, 3, 1))
    added_re, added_im = tl.split(tl.reshape(added, (N, R, 2)))
    return carry_re * re - carry_im * im + added_re, carry_re * im + carry_im * re + added_im


@triton.jit
def _stacked_powers(mode, n, steps, N: tl.constexpr):
    """exp(a l), (2N, C): eight real parts, the eight imaginary parts of the same modes, and so on."""
    i = tl.arange(0, 2 * N)
    part = (i // 8 % 2).to(tl.float32)[:, None]
    return _wave(mode, n, (i // 16 * 8 + i % 8)[:, None], steps[None, :].to(tl.float32), part / 4)


@triton.jit
def _powers(mode, n, steps, N: tl.constexpr):
    """exp(a l), real and imaginary part, (C, N) each."""
    j, steps = tl.arange(0, N)[None, :], steps[:, None].to(tl.float32)
    return _wave(mode, n, j, steps, 0.0), _wave(mode, n, j, steps, 0.25)


@triton.jit
def _weighed_powers(mode, n, steps, N: tl.constexpr):
    """The rows that read a state h: Re(2c exp(a l) h) = first Re h + second Im h, (C, N) each."""
    j = tl.arange(0, N)[None, :]
    re, im = _powers(mode, n, steps, N)
    c_re = tl.load(mode + 3 * n + j, mask=j < n, other=0.0)
    c_im = tl.load(mode + 4 * n + j, mask=j < n, other=0.0)
    return c_re * re - c_im * im, -(c_re * im + c_im * re)


@triton.jit
def _carry(mode, n, N: tl.constexpr):
    """exp(a C), (N, 1) each."""
    j = tl.arange(0, N)[:, None]
    re = tl.load(mode + 5 * n + j, mask=j < n, other=0.0)
    return re, tl.load(mode + 6 * n + j, mask=j < n, other=0.0)


@triton.jit
def _wave(mode, n, j, steps, quarter):
    """exp(Re a l) cos(Im a l - 2 pi quarter): the real part of exp(a l), or with a quarter turn the imaginary."""
    decay = tl.load(mode + j, mask=j < n, other=0.0)
    high = tl.load(mode + n + j, mask=j < n, other=0.0)
    low = tl.load(mode + 2 * n + j, mask=j < n, other=0.0)
    turns = high * steps
    turns = turns - tl.floor(turns + 0.5) + (low * steps - quarter)
    turns -= tl.floor(turns + 0.5)
    # cos 2z = 1 - 2 sin(z)^2 with |z| <= pi / 2, where this series is exact to rounding: no slow reduction.
    z = 3.141592653589793 * turns
    q = z * z
    sine = 1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72 * (1 - q / 110 * (1 - q / 156)))))
    sine *= z
    return tl.exp(decay * steps) * (1 - 2 * sine * sine)


@triton.jit
def _toeplitz(taps, C: tl.constexpr):
    """T^T[p, q] = w[C-1+p-q], (C, C): output token first."""
    p, q = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    return tl.load(taps + C - 1 + p - q)


@triton.jit
def _load_tile(x, row, token, B, L, by_row, by_token):
    """(C, R), zero outside."""
    inside = (token[:, None] < L) & (row[None, :] < B)
    return tl.load(x + token[:, None] * by_token + row[None, :].to(tl.int64) * by_row, mask=inside, other=0.0)


@triton.jit
def _store_tile(y, value, row, token, B, L):
    inside = (token[:, None] < L) & (row[None, :] < B)
    tl.store(y + token[:, None] + row[None, :].to(tl.int64) * L, value, mask=inside)


@triton.jit
def _mode_rows(N: tl.constexpr, R: tl.constexpr, width):
    """Offsets of a state (N, R) at rest."""
    return tl.arange(0, N)[:, None] * width + tl.arange(0, R)[None, :]
