"""Long convolutions: the textbook forms, and the two fast ones with their hand-written backward.

Fast forms work channels first, (H, B, L), so that a channel is one contiguous matrix, and on
two-sided filters w (streams, H, 2L-1) whose tap L-1+d weighs the input d steps earlier:
y[s, h, b, i] = sum_j w[s, h, L-1+i-j] x[h, b, j]. Both directions and the D skip are one filter.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

SLAB_BYTES = 1 << 20
"""Channels are transformed a slab at a time, so that padded signals and spectra stay in a CPU's cache."""


def causal_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """The textbook form: y[i] = sum_{j<=i} kernel[i-j] u[j] over (..., L), by zero-padded transforms."""
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
        backward = nn.functional.pad(backward[..., shift:], (0, shift))
    return forward, backward


def two_sided(kernels: Tensor, skip: Tensor) -> Tensor:
    """One-sided kernels (directions, H, L) and D (streams, H) as two-sided filters (streams, H, 2L-1).

    Two directions in one stream add up in it: the sum of their outputs is one convolution.
    """
    length = kernels.shape[-1]
    filters = kernels.new_zeros(*skip.shape, 2 * length - 1)
    filters[0, :, length - 1 :] += kernels[0]
    if len(kernels) == 2:
        filters[-1, :, :length] += kernels[1].flip(-1)
    filters[..., length - 1] += skip
    return filters


def two_sided_backward(grad: Tensor, directions: int) -> tuple[Tensor, Tensor]:
    """Gradients of the kernels and of the skip from that of the filters."""
    length = grad.shape[-1] // 2 + 1
    ways = (grad[0, :, length - 1 :], grad[-1, :, :length].flip(-1))
    return torch.stack(ways[:directions]), grad[..., length - 1]


def transform_length(length: int) -> int:
    """The smallest even transform that holds 2L-1 taps and has no prime factor above 7."""
    n = max(2, 2 * length - 1)
    while n % 2 or not _smooth(n):
        n += 1
    return n


def spectral_conv(x: Tensor, spectra: Tensor) -> Tensor:
    """x (H, B, L) with the transforms of filters (streams, H, bins): (streams, H, B, L); one transform of x."""
    h, b, length = x.shape
    n = 2 * spectra.shape[-1] - 2
    y = x.new_empty(len(spectra), h, b, length)
    for slab in _slabs(x, n):
        signal = torch.fft.rfft(_padded(x[slab], n))
        for stream, spectrum in enumerate(spectra[:, slab, None]):
            last = stream + 1 == len(spectra)
            product = signal.mul_(spectrum) if last else signal * spectrum
            y[stream, slab] = torch.fft.irfft(product, n=n)[..., length - 1 : 2 * length - 1]
    return y


def spectral_conv_backward(grad: Tensor, x: Tensor, spectra: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (H, B, L) and of the filters (streams, H, 2L-1) from that of y (streams, H, B, L).

    Both are correlations, so their spectra are products with a conjugate; the batch is summed
    before the filters' inverse transform. The signal's transform is recomputed, not stored.
    """
    length, n = x.shape[-1], 2 * spectra.shape[-1] - 2
    grad_x = torch.empty_like(x)
    grad_filters = x.new_empty(*spectra.shape[:2], 2 * length - 1)
    conjugates = spectra.conj().resolve_conj()
    for slab in _slabs(x, n):
        signal = torch.fft.rfft(_padded(x[slab], n)).conj_physical_()
        total = None
        for stream, conjugate in enumerate(conjugates[:, slab, None]):
            product = torch.fft.rfft(_padded(grad[stream, slab], n, length - 1))
            taps = torch.fft.irfft((signal * product).sum(1), n=n)
            grad_filters[stream, slab] = taps[..., : 2 * length - 1]
            product.mul_(conjugate)
            total = product if total is None else total.add_(product)
        grad_x[slab] = torch.fft.irfft(total, n=n)[..., :length]
    return grad_x, grad_filters


def toeplitz(filters: Tensor) -> Tensor:
    """Filters (streams, H, 2L-1) as matrices T[j, i] = w[L-1+i-j], (streams, H, L, L)."""
    length = filters.shape[-1] // 2 + 1
    return filters.unfold(-1, length, 1).flip(-2)


def direct_conv(x: Tensor, matrices: Tensor) -> Tensor:
    """x (H, B, L) by Toeplitz matrices (streams, H, L, L): 2L operations per output, the least at small L."""
    return torch.stack([torch.bmm(x, matrix) for matrix in matrices])


def direct_conv_backward(grad: Tensor, x: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the filters; a tap's gradient is the sum along its diagonal."""
    length = x.shape[-1]
    grad_x = torch.bmm(grad[0], matrices[0].mT)
    for g, matrix in zip(grad[1:], matrices[1:], strict=True):
        grad_x.baddbmm_(g, matrix.mT)
    outer = torch.stack([torch.bmm(x.mT, g) for g in grad]).flip(-2)
    # Rows one tap longer than their stride shear the anti-diagonals i+j into columns.
    sheared = nn.functional.pad(outer, (0, length)).flatten(-2)[..., : length * (2 * length - 1)]
    return grad_x, sheared.unflatten(-1, (length, 2 * length - 1)).sum(-2)


def _padded(x: Tensor, n: int, offset: int = 0) -> Tensor:
    padded = x.new_zeros(*x.shape[:-1], n)
    padded[..., offset : offset + x.shape[-1]] = x
    return padded


def _slabs(x: Tensor, n: int) -> Iterator[slice]:
    """Ranges of channels of x (H, B, L) to transform together at length n; all of them off the CPU."""
    h, b, _ = x.shape
    channels = h if x.device.type != "cpu" else max(1, SLAB_BYTES // (n * b * x.element_size() or 1))
    for start in range(0, h, channels):
        yield slice(start, min(start + channels, h))


def _smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
