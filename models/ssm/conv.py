"""Long convolutions: the textbook forms, and the fast ones with their hand-written backward.

Fast forms take sequences as (H, B, L), all signals of a channel together, or as they come, and two-sided filters
w (streams, H, 2L-1) whose tap L-1+d weighs the input d steps earlier:
y[s, h, b, i] = sum_j w[s, h, L-1+i-j] x[h, b, j]. Both directions and the D skip are one filter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLAB_BYTES = 1 << 20
"""Channels are convolved a slab at a time, so that padded signals, spectra and matrices stay in a CPU's cache."""

CACHED_TOKENS = 512
"""So many tokens of sixteen channels, twice, stay in a CPU's first cache."""


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


def slabs(x: Tensor, bytes_per_channel: int) -> list[slice]:
    """Channels of x (H, ...) in runs of SLAB_BYTES; all at once where there is no such cache."""
    channels = len(x)
    width = max(1, SLAB_BYTES // max(1, bytes_per_channel)) if x.device.type == "cpu" else max(1, channels)
    return [slice(start, min(start + width, channels)) for start in range(0, channels, width)]


def spectral_conv(x: Tensor, spectra: Tensor, conjugate: Tensor | None = None) -> Tensor:
    """x (H, B, L) with the transforms of filters (streams, H, bins): (streams, H, B, L); one transform of x.

    `conjugate` (H, B, bins), if given, is filled with that of x, for the backward.
    """
    length, n = x.shape[-1], 2 * spectra.shape[-1] - 2
    y = x.new_empty(len(spectra), *x.shape)
    transform = _PaddedTransform(x, n)
    for slab in transform.slabs:
        signal = transform(x[slab])
        if conjugate is not None:
            torch.conj_physical(signal, out=conjugate[slab])
        for stream, spectrum in enumerate(spectra[:, slab, None]):
            last = stream + 1 == len(spectra)
            product = signal.mul_(spectrum) if last else signal * spectrum
            y[stream, slab] = torch.fft.irfft(product, n=n)[..., length - 1 : 2 * length - 1]
    return y


def spectral_conv_backward(grad: Tensor, conjugate: Tensor, spectra: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (H, B, L) and of the filters (streams, H, 2L-1) from that of y (streams, H, B, L).

    Both are correlations, so their spectra are products with a conjugate, of x (H, B, bins) in one and of
    the filters in the other; the batch is summed before the filters' inverse transform.
    """
    length, n = grad.shape[-1], 2 * spectra.shape[-1] - 2
    grad_x = grad.new_empty(grad.shape[1:])
    grad_filters = grad.new_empty(*spectra.shape[:2], 2 * length - 1)
    transform = _PaddedTransform(grad_x, n, offset=length - 1)
    for slab in transform.slabs:
        total = torch.zeros(())
        for stream, spectrum in enumerate(spectra[:, slab, None]):
            product = transform(grad[stream, slab])
            taps = torch.fft.irfft((conjugate[slab] * product).sum(1), n=n)
            grad_filters[stream, slab] = taps[..., : 2 * length - 1]
            product.mul_(spectrum.conj_physical())  # the lazy conj() is lost inside a compiled operator
            total = product if stream == 0 else total.add_(product)
        grad_x[slab] = torch.fft.irfft(total, n=n)[..., :length]
    return grad_x, grad_filters


class _PaddedTransform:
    """Real transforms of slabs of channels, through one buffer whose padding stays zero."""

    def __init__(self, x: Tensor, n: int, offset: int = 0) -> None:
        _, b, length = x.shape
        self.slabs = slabs(x, 2 * n * b * x.element_size())  # a signal and its spectrum
        widest = self.slabs[0].stop if self.slabs else 0
        self.buffer = x.new_zeros(widest, b, n)
        self.place = slice(offset, offset + length)

    def __call__(self, slab: Tensor) -> Tensor:
        padded = self.buffer[: len(slab)]
        padded[..., self.place] = slab
        return torch.fft.rfft(padded)


def toeplitz(filters: Tensor) -> Tensor:
    """Filters (streams, H, 2L-1) as matrices T[j, i] = w[L-1+i-j], (streams, H, L, L)."""
    length = filters.shape[-1] // 2 + 1
    return filters.unfold(-1, length, 1).flip(-2)


def direct_conv(x: Tensor, filters: Tensor) -> Tensor:
    """x (H, B, L) by Toeplitz matrices of filters (streams, H, 2L-1): 2L operations per output, least at small L."""
    return torch.matmul(x, toeplitz(filters))


def direct_conv_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (H, B, L) and of the filters from that of y (streams, H, B, L)."""
    matrices = toeplitz(filters)
    grad_x = torch.bmm(grad[0], matrices[0].mT)
    for g, matrix in zip(grad[1:], matrices[1:], strict=True):
        grad_x.baddbmm_(g, matrix.mT)
    return grad_x, direct_filter_gradient(grad, x)


def direct_filter_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """(streams, H, 2L-1): a tap's gradient is the sum along its diagonal of the matrix's."""
    return torch.stack([diagonal_sums(torch.bmm(x.mT, g)) for g in grad])


def depthwise_conv(u: Tensor, filters: Tensor) -> Tensor:
    """u (B, L, H) by filters (streams, H, 2L-1) -> (B, L, streams * H): the direct form without a transposition.

    Channels last is how u lies already. A library's convolution correlates, so taps are reversed.
    """
    image, padding = u.mT.unsqueeze(2), (0, u.shape[1] - 1)  # (B, H, 1, L)
    weights = filters.flip(-1)[:, :, None, None]
    ways = [nn.functional.conv2d(image, weight, padding=padding, groups=u.shape[2]).squeeze(2).mT for weight in weights]
    return torch.cat(ways, dim=2) if len(ways) > 1 else ways[0].contiguous()


def depthwise_conv_backward(grad: Tensor, filters: Tensor) -> Tensor:
    """Gradient of u (B, L, H) from that of y (B, L, streams * H): the same convolution with its taps reversed."""
    ways = zip(grad.split(filters.shape[1], dim=2), filters.flip(-1), strict=True)
    total, *rest = (depthwise_conv(g, taps[None]) for g, taps in ways)
    for way in rest:
        total.add_(way)
    return total


def depthwise_filter_gradient(grad: Tensor, u: Tensor) -> Tensor:
    """(streams, H, 2L-1), of the filters, from those of y (B, L, streams * H) and u (B, L, H), transposing nothing.

    Correlating g with u over images and tokens is a convolution too: g is the image (1, H, B, L) and u its filter, for
    so few images at a time that a few channels of both stay in a CPU's cache.
    """
    _, length, width = u.shape
    images, whole, ways = max(1, CACHED_TOKENS // length), (0, length - 1), []
    for way in grad.split(width, dim=2):
        total = u.new_zeros(width, 2 * length - 1)
        for start in range(0, len(u), images):
            part = slice(start, start + images)
            weight = u[part].permute(2, 0, 1).unsqueeze(1).contiguous(memory_format=torch.channels_last)
            image = way[part].contiguous().permute(2, 0, 1).unsqueeze(0)
            total += nn.functional.conv2d(image, weight, padding=whole, groups=width)[0, :, 0]
        ways.append(total)
    return torch.stack(ways)


def diagonal_sums(matrices: Tensor) -> Tensor:
    """(H, L, L) -> (H, 2L-1), entry L-1+d the sum over j of [j, j+d].

    Rows of 2L read with a stride of 2L+1 shear the diagonals into columns, d modulo 2L+1.
    """
    length = matrices.shape[-1]
    sums = matrices.new_empty(len(matrices), 2 * length - 1)
    parts = slabs(matrices, 2 * length * length * matrices.element_size())
    sheared = matrices.new_zeros(parts[0].stop if parts else 0, length * (2 * length + 1))
    for slab in parts:
        flat = sheared[: slab.stop - slab.start]
        flat[:, : 2 * length * length].unflatten(1, (length, 2 * length))[..., :length] = matrices[slab]
        columns = flat.unflatten(1, (length, 2 * length + 1)).sum(1)
        sums[slab, : length - 1], sums[slab, length - 1 :] = columns[:, length + 2 :], columns[:, :length]
    return sums


def _smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
