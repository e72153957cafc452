"""What training asks of one split of a data set, whether it lies in memory, is decoded as it goes, or holds latents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Source(Protocol):
    """Images by number, in any order, on one device. Sources are cached and shared: nobody writes into them."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Tensor:
        """int64 (N,), on `device`; zeros where there are none."""
        ...

    @property
    def classes(self) -> int:
        """Labels run from 0 to classes - 1; 0: unlabelled."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network sees."""
        ...

    @property
    def latent_factor(self) -> int:
        """Pixels per cell along a side."""
        ...

    @property
    def sha256(self) -> str:
        """Of all that decides what `batch` returns: two sources with one digest are the same images."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def takes_noise(self) -> bool:
        """Whether `batch` draws x0 from a distribution (an encoder's posterior), given standard normal numbers."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Source: ...

    def batch(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """x0 float32 (n, C, H, W) on `device` of the images `index` int64 (n,), on the CPU.

        `mirrored` bool (n,) says which are flipped left to right; None: none. `noise` (n, C, H, W), on `device`,
        is given to a source that takes it; None: x0 is the mean.
        """
        ...

    def expect(self, coming: Iterable[Tensor]) -> None:
        """The batches that will be asked for next, in this order: a hint, which replaces the one before."""
        ...

    def ready(self, count: int | None = None) -> Source:
        """A source whose first `count` images (None: all) can be read again and again at no cost."""
        ...
