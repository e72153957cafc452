"""Convolution kernels of diagonal state spaces: discretisation and the sum over modes.

A mode is one conjugate pair of eigenvalues, so a kernel of n modes is that of a real state of
size 2n: k[l] = 2 Re sum_n c[n] exp(a[n] l), with a = dt A (Gu et al. 2022, S4D, eq. 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
    # log |exp(a)|^2 = log1p(2 Re z / |1 - z/2|^2), exact also where |exp(a)| is close to 1.
    a_re = torch.log1p(2 * z_re / _square(denominator)) / 2
    a_im = torch.atan2(z_im / 2, 1 + z_re / 2) + torch.atan2(z_im / 2, 1 - z_re / 2)
    return Modes(a_re, a_im, *_multiply(C, gain))


def vandermonde_kernel(modes: Modes, length: int) -> Tensor:
    """The textbook form, (directions, H, L): every power of every mode is written out."""
    a, c = torch.complex(modes.a_re, modes.a_im), torch.complex(modes.c_re, modes.c_im)
    steps = torch.arange(length, device=a.device, dtype=modes.a_re.dtype)
    return 2 * torch.einsum("...n,...nl->...l", c, torch.exp(a[..., None] * steps)).real


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
