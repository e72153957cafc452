"""Every random number of training, as a function of a seed, its purpose, and the images seen so far.

Nothing is drawn from a running generator, so there is no generator state to save: a resumed run
draws what it would have drawn, and two backbones with the same seeds see the same images, flips,
times, noise and dropped labels, whatever their networks draw for themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from models import Denoiser
from study.config import Seeds
from study.data import Source
from study.diffusion import Process

ALL = slice(None)
AHEAD = 3  # batches that a source is told of before they are asked for


def stream(seed: int, purpose: str, position: int) -> int:
    """A seed of its own for each purpose and position."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device, seed: int, purpose: str, position: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(stream(seed, purpose, position))


def order_of(images: int, seed: int, epoch: int) -> Tensor:
    """A permutation of the images' numbers."""
    return torch.randperm(images, generator=generator(torch.device("cpu"), seed, "order", epoch))


class Batch(NamedTuple):
    x0: Tensor  # (B, C, H, W) in [-1, 1]
    t: Tensor  # (B,)
    noise: Tensor  # (B, C, H, W)
    y: Tensor | None  # (B,), some dropped; None: unconditional


@dataclass
class Draws:
    """Training batches from a source of images, on its device."""

    images: Source
    process: Process
    seeds: Seeds
    flip: bool

    def __post_init__(self) -> None:
        # Two, for a look ahead may cross into the next epoch.
        self._order_of = lru_cache(maxsize=2)(partial(order_of, len(self.images), self.seeds.data))

    def batch(self, denoiser: Denoiser, seen: int, count: int, part: slice = ALL) -> Batch:
        """The `count` images after the first `seen`, with their noise; of them, `part`.

        All numbers are drawn for all of them, so that a part is the same whoever else has the rest.
        """
        device = self.images.device
        self.images.expect(self._indices(seen + step * count, count)[part] for step in range(AHEAD + 1))
        index = self._indices(seen, count)
        mirrored = None
        if self.flip:
            mirrored = torch.rand(count, generator=self._data(device, "flip", seen), device=device)[part] < 0.5
        posterior = self._normal("posterior", seen, count)[part] if self.images.takes_noise else None
        x0 = self.images.batch(index[part], mirrored, posterior)
        t = self.process.sample_times(count, self._noise(device, "times", seen), device)[part]
        noise = self._normal("noise", seen, count)[part]
        y = None
        if denoiser.config.classes:
            labels = self.images.labels[index.to(device)]
            y = denoiser.drop_labels(labels, self._noise(device, "labels", seen))[part]
        return Batch(x0, t, noise, y)

    def seed_network(self, seen: int) -> None:
        """What a network draws for itself (dropout) comes from its device's global generator."""
        seed = stream(self.seeds.noise, "network", seen)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every kind of device: 0.2 ms
        if self.images.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _indices(self, seen: int, count: int) -> Tensor:
        """Epoch after epoch, each in its own order; a batch may span two."""
        parts = []
        while count:
            epoch, start = divmod(seen, len(self.images))
            part = self._order_of(epoch)[start : start + count]
            parts.append(part)
            seen, count = seen + len(part), count - len(part)
        return torch.cat(parts)

    def _normal(self, purpose: str, seen: int, count: int) -> Tensor:
        """(count, C, H, W), on the images' device."""
        device = self.images.device
        shape = (count, *self.images.shape)
        return torch.randn(shape, generator=self._noise(device, purpose, seen), device=device)

    def _data(self, device: torch.device, purpose: str, position: int) -> torch.Generator:
        return generator(device, self.seeds.data, purpose, position)

    def _noise(self, device: torch.device, purpose: str, position: int) -> torch.Generator:
        return generator(device, self.seeds.noise, purpose, position)
