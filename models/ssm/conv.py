"""Long convolutions of sequences (..., L) with kernels as long as the sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """The textbook form: y[i] = sum_{j<=i} kernel[i-j] u[j], through zero-padded transforms."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length]


def two_way_conv(u: Tensor, kernels: Tensor, shift: int = 0) -> tuple[Tensor, Tensor]:
    """The textbook form of both directions, kernels (2, ..., L): causal, and flip-causal-flip.

    Truly bidirectional: y_f[i] sums j <= i, y_b[i] = sum_{j>=i+shift} kernels[1][j-i-shift] u[j].
    `shift=1` is the S4 repository's convention, in which the two directions share no tap.
    """
    forward = causal_conv(u, kernels[0])
    backward = causal_conv(u.flip(-1), kernels[1]).flip(-1)
    if shift:
        backward = torch.nn.functional.pad(backward[..., shift:], (0, shift))
    return forward, backward
