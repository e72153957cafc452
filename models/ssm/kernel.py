"""Convolution kernels of diagonal state spaces: discretisation and the sum over modes.

A mode is one conjugate pair of eigenvalues, so a kernel of n modes is that of a real state of
size 2n: k[l] = 2 Re sum_n c[n] exp(a[n] l), with a = dt A (Gu et al. 2022, S4D, eq. 3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

NEGLIGIBLE = -40.0
"""Logarithm of the size below which a power counts as zero."""


class Modes(NamedTuple):
    """Discretised modes as real tensors, each (directions, H, n): log eigenvalues a and weights c."""

    a_re: Tensor
    a_im: Tensor
    c_re: Tensor
    c_im: Tensor


def discretise(log_dt: Tensor, A: tuple[Tensor, Tensor], C: tuple[Tensor, Tensor], rule: str) -> Modes:
    """Continuous (A, C) with B = 1 to the steps a, c of a sequence; real arithmetic, so that it compiles.

    `A` and `C` are (real, imaginary) parts (..., H, n); `log_dt` is (..., H).
    """
    dt = log_dt.exp().unsqueeze(-1)
    z_re, z_im = dt * A[0], dt * A[1]
    if rule == "zoh":
        gain = _divide(_expm1(z_re, z_im), A)  # B_d = (exp(dt A) - 1) / A
        return Modes(z_re, z_im, *_multiply(C, gain))
    # Bilinear (Tustin): exp(a) = (1 + z/2) / (1 - z/2), B_d = dt / (1 - z/2).
    denominator = (1 - z_re / 2, -z_im / 2)
    gain = _divide((dt.expand_as(z_re), torch.zeros_like(z_im)), denominator)
    # |exp(a)|^2 = |1 + z/2|^2 / |1 - z/2|^2 = 1 + 2 Re z / |1 - z/2|^2, each exact at its own end; 0 at z = -2.
    numerator = (1 + z_re / 2, z_im / 2)
    ratio = _square(numerator) / _square(denominator)
    near_one = torch.log1p((2 * z_re / _square(denominator)).clamp(min=-0.5))
    floor = torch.finfo(ratio.dtype).tiny
    a_re = torch.where(ratio > 0.5, near_one, ratio.clamp(min=floor).log()) / 2
    # The phase of a zero is any; 0 keeps its gradient finite.
    real = torch.where(ratio > floor, numerator[0], 1)
    a_im = torch.atan2(numerator[1], real) + torch.atan2(numerator[1], denominator[0])
    return Modes(a_re, a_im, *_multiply(C, gain))


def vandermonde_kernel(modes: Modes, length: int) -> Tensor:
    """The textbook form, (directions, H, L): every power of every mode is written out."""
    a, c = torch.complex(modes.a_re, modes.a_im), torch.complex(modes.c_re, modes.c_im)
    steps = torch.arange(length, device=a.device, dtype=modes.a_re.dtype)
    return 2 * torch.einsum("...n,...nl->...l", c, torch.exp(a[..., None] * steps)).real


class Powers(NamedTuple):
    """exp(a l) for l = S l1 + l2 as exp(a S l1) exp(a l2): about sqrt(L) powers in each table."""

    coarse: Tensor  # exp(a S l1), (G, ceil(L/S), n) with G = directions * H
    fine: Tensor  # the conjugate of exp(a l2), (G, S, n)


def power_tables(modes: Modes, length: int) -> Powers:
    doublings = _doublings(modes.a_re.flatten(0, 1), modes.a_im.flatten(0, 1), length)
    stride = _stride(length)
    bits = stride.bit_length() - 1
    return Powers(_powers(doublings[bits:], -(-length // stride)), _powers(doublings[:bits].conj_physical(), stride))


def integer_powers(modes: Modes, count: int) -> Tensor:
    """exp(a l) for l < count, (directions, H, count, n)."""
    powers = _powers(_doublings(modes.a_re.flatten(0, 1), modes.a_im.flatten(0, 1), count), count)
    return powers.unflatten(0, modes.a_re.shape[:2])


def empty_powers(modes: Modes, length: int) -> Powers:
    """`power_tables` without the numbers."""
    stride, (h, n) = _stride(length), modes.a_re.shape[1:]
    shapes = ((len(modes.a_re) * h, count, n) for count in (-(-length // stride), stride))
    return Powers(*(modes.a_re.new_empty(shape, dtype=modes.a_re.dtype.to_complex()) for shape in shapes))


def split_kernel(modes: Modes, powers: Powers, length: int) -> Tensor:
    """The same kernel, (directions, H, L), without the matrix of powers.

    The sum over modes is one real matrix product per channel, (L/S, 2n) by (2n, S).
    """
    k = torch.bmm(_interleave(powers.coarse * _weights(modes)), _interleave(powers.fine).mT)
    return k.flatten(1)[:, :length].unflatten(0, modes.a_re.shape[:2])


def split_kernel_backward(grad: Tensor, modes: Modes, powers: Powers) -> Modes:
    """Gradients of the modes from that of the kernel, (directions, H, L)."""
    (coarse, fine), weights = powers, _weights(modes)
    (blocks, n), stride = coarse.shape[1:], fine.shape[1]
    padding = (0, blocks * stride - grad.shape[-1])
    grad = nn.functional.pad(grad.flatten(0, 1), padding).unflatten(1, (blocks, stride))
    grad_coarse = _deinterleave(torch.bmm(grad, _interleave(fine)), n)  # of coarse * weights
    grad_fine = _deinterleave(torch.bmm(grad.mT, _interleave(coarse * weights)), n)
    # d exp(a s) / da = s exp(a s): moments of order 0 and 1 over the steps s of each table.
    # All are conjugated, but for those of `fine`, which holds exp(conj(a) s).
    moment_0, moment_1 = _moments(grad_coarse.conj_physical_().mul_(coarse), stride)
    _, moment_fine = _moments(grad_fine.conj_physical_().mul_(fine), 1)
    grad_a = (moment_1 * weights[:, 0]).conj_physical_().add_(moment_fine).view_as(modes.a_re)
    grad_c = (2 * moment_0).view_as(modes.a_re)
    return Modes(grad_a.real, grad_a.imag, grad_c.real, -grad_c.imag)


def _stride(length: int) -> int:
    return 1 << math.ceil(math.log2(length) / 2)


def _weights(modes: Modes) -> Tensor:
    """2c as (G, 1, n), to weigh the rows of a power table."""
    return torch.complex(2 * modes.c_re, 2 * modes.c_im).flatten(0, 1)[:, None]


def _doublings(a_re: Tensor, a_im: Tensor, length: int) -> Tensor:
    """exp(a 2^k) for all 2^k < length, (K, G, n); the exponents are exact."""
    # Made on the device: a copy of numbers from Python would wait for all that is queued there.
    steps = (1 << torch.arange((length - 1).bit_length(), device=a_re.device)).to(a_re.dtype)[:, None, None]
    log_size, phase = a_re * steps, a_im * steps
    # Below float64's resolution of the largest tap anyway; products of denormals are slow on a CPU.
    size = log_size.exp().masked_fill_(log_size < NEGLIGIBLE, 0)
    return torch.complex(size * phase.cos(), size * phase.sin())  # torch.polar is not vectorised


def _powers(doublings: Tensor, count: int) -> Tensor:
    """z^j for j < count, (G, count, n), from all z^(2^k) < count, (K, G, n): a product over the bits of j."""
    _, groups, n = doublings.shape
    powers = doublings.new_ones(groups, count, n)
    for k, factor in enumerate(doublings):
        known, wanted = 1 << k, min(2 << k, count)
        torch.mul(powers[:, : wanted - known], factor[:, None], out=powers[:, known:wanted])
    return powers


def _moments(terms: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Sums over j of terms (G, J, n) and of step * j * terms, (G, n) each."""
    j = torch.arange(terms.shape[1], device=terms.device, dtype=terms.real.dtype)
    weights = torch.stack([torch.ones_like(j), step * j])
    sums = _deinterleave(torch.matmul(weights, _interleave(terms)), terms.shape[2])
    return sums[:, 0], sums[:, 1]


def _interleave(z: Tensor) -> Tensor:
    """Complex (..., n) as real (..., 2n): Re(sum x conj(y)) is then a real product of rows."""
    return torch.view_as_real(z).flatten(-2)


def _deinterleave(x: Tensor, n: int) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (n, 2)))


def _expm1(re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """exp(z) - 1 without cancellation at small z."""
    return torch.expm1(re) * im.cos() - 2 * torch.sin(im / 2) ** 2, re.exp() * im.sin()


def _square(z: tuple[Tensor, Tensor]) -> Tensor:
    return z[0] * z[0] + z[1] * z[1]


def _multiply(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _divide(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    square = _square(y)
    return _multiply(x, (y[0] / square, -y[1] / square))
