"""A split of a set on disk, decoded as training goes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from study.data.ahead import Ahead, thread_count
from study.data.dataset import DataConfig, Dataset, Found, Split, register_on_disk
from study.data.decode import Crop, Rule, decode
from study.data.images import ImageSet, flipped, to_float
from study.data.listing import Listing, Place
from study.data.remembered import remembered
from study.data.splits import Numbers, dealt

AT_ONCE = 64  # images of a batch where the caller has no batch of its own


@dataclass(eq=False)
class StreamedSet:
    """A `Source` whose images are read and decoded by threads, a few batches before they are needed."""

    name: str
    listing: Listing
    numbers: Numbers  # in the listing, of each image of this split
    labels: Tensor  # int64 (N,)
    classes: int
    crop: Crop
    sha256: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    latent_factor: int = 1
    takes_noise: bool = False

    def __post_init__(self) -> None:
        self._ahead: Ahead | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (3, self.crop.size, self.crop.size)

    def to(self, device: torch.device | str) -> StreamedSet:
        return replace(self, device=torch.device(device), labels=self.labels.to(device))

    def batch(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """float32 (n, 3, H, W) in [-1, 1], of the images `index` (n,), those `mirrored` (n,) flipped left to right."""
        x0 = to_float(self.pixels(index).to(self.device, non_blocking=True))
        return flipped(x0, mirrored)

    def pixels(self, index: Tensor) -> Tensor:
        """uint8 (n, 3, H, W) on the CPU."""
        return self._threads().take(index)

    def expect(self, coming: Iterable[Tensor]) -> None:
        self._threads().expect(coming)

    def ready(self, count: int | None = None) -> ImageSet:
        """The first `count` images, decoded once and for all."""
        count = len(self) if count is None else min(count, len(self))
        parts = torch.arange(count).split(AT_ONCE)
        images = torch.empty((count, *self.shape), dtype=torch.uint8)
        for turn, part in enumerate(parts):
            self.expect(parts[turn : turn + 2])
            images[part] = self.pixels(part)
        self._ahead = None
        return ImageSet(self.name, images, self.labels[:count].cpu(), self.classes, sha256=self.sha256)

    def _threads(self) -> Ahead:
        """Started when the first image is asked for: a plan, or a rank that only looks, needs none."""
        if self._ahead is None:
            shape, pinned = self.shape, self.device.type == "cuda"
            self._ahead = Ahead(_decoder(self.listing, self.numbers, self.crop), shape, thread_count(), pinned)
        return self._ahead


def _decoder(listing: Listing, numbers: Numbers, crop: Crop) -> Callable[[int], np.ndarray]:
    """It must not hold on to the set, whose end ends the threads that hold it."""

    def decode_one(index: int) -> np.ndarray:
        number = int(numbers[index])
        return decode(listing.read(number), crop, listing.full_name(number))

    return decode_one


Locate: TypeAlias = Callable[[Path], Place]
"""Where a set at a path has its images; refuses in one line what is no such set."""

_FILES: dict[str, tuple[Callable[[Path], Listing], Callable[[int], Crop]]] = {}


def files_of(name: str, path: Path, size: int) -> tuple[Listing, Crop] | None:
    """What a set of image files holds, and how each is cropped; None: it is of another kind."""
    if name not in _FILES:
        return None
    listing, crop = _FILES[name]
    return listing(path), crop(size)


def register_files(offer: Dataset, locate: Locate, rule: Rule = "centre", enlarges: bool = False) -> None:
    """A set of image files, however they are kept: `locate` says where they are, `rule` how each is cropped."""
    listing = lru_cache(maxsize=2)(lambda path: remembered(offer.name, path, locate(path)))
    _FILES[offer.name] = (listing, lambda size: Crop(size, rule, enlarges))

    def find(path: Path) -> Found:
        files = listing(path)
        apart = int(files.apart.sum())
        return Found(len(files) - apart, apart, files.classes, files.digest)

    def open_split(config: DataConfig, split: Split) -> StreamedSet:
        assert config.size is not None  # all fields are filled in
        files = listing(Path(str(config.path)))
        numbers = dealt(files.labels, files.apart, config, split)
        crop = Crop(config.size, rule, enlarges)
        labels = torch.from_numpy(files.labels[numbers] if config.classes else np.zeros_like(numbers))
        content = f"{files.digest}/{crop}/{offer.version}/{bool(config.classes)}/".encode() + numbers.tobytes()
        return StreamedSet(
            config.name, files, numbers, labels, config.classes or 0, crop, hashlib.sha256(content).hexdigest()
        )

    register_on_disk(replace(offer, any_size=True), find)(open_split)
