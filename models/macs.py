"""What one forward pass multiplies and adds, by named part, and the primitive formulas.

Convention: one multiply-accumulate (MAC) is one unit. The "Gflops" of the DiT and DiffuSSM
papers are these MACs; true floating-point operations are twice as many.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Macs:
    """MACs of one image through one denoiser call; parts add with `+` and repeat with `*`.

    `kernel` is paid once per call whatever the batch, and once per *sampling run* when cached
    (generating a convolution kernel and its spectrum). `elementwise` counts output elements of
    norms, activations, gates and residual sums; no paper counts it and `total` leaves it out.
    """

    matmul: int = 0  # linear layers and convolutions
    attention: int = 0  # query·key and weights·value products
    fft: int = 0  # transforms of the signal and products of spectra
    scan: int = 0  # recurrences: selective scan
    kernel: int = 0  # kernel generation: independent of the batch, amortised over sampling steps
    elementwise: int = 0

    @property
    def total(self) -> int:
        """MACs per image: everything that scales with the batch, without elementwise work."""
        return self.matmul + self.attention + self.fft + self.scan

    def parts(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: Macs) -> Macs:
        mine, theirs = self.parts(), other.parts()
        return Macs(**{part: mine[part] + theirs[part] for part in mine})

    def __mul__(self, times: int) -> Macs:
        return Macs(**{part: count * times for part, count in self.parts().items()})

    __rmul__ = __mul__


def linear(rows: int, inputs: int, outputs: int) -> Macs:
    """`rows` vectors through an (inputs x outputs) matrix; biases are free by convention."""
    return Macs(matmul=rows * inputs * outputs)


def conv2d(height: int, width: int, inputs: int, outputs: int, kernel: int = 3) -> Macs:
    """A dense convolution producing (outputs, height, width)."""
    return Macs(matmul=height * width * inputs * outputs * kernel * kernel)


def attention(queries: int, keys: int, width: int) -> Macs:
    """Scores and weighted values over all heads; softmax is not counted, as everybody does."""
    return Macs(attention=2 * queries * keys * width)


def real_fft(length: int, count: int) -> int:
    """`count` real transforms (or inverses): 2.5 n log2 n real operations are 1.25 n log2 n MACs."""
    return round(count * 1.25 * length * math.log2(length)) if length > 1 else 0
