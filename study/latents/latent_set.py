"""Latents as a source of training images: drawn from the posteriors on disk, without the autoencoder."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.denoiser import require
from study.latents.files import EncodingPlan, open_shard, read_index, read_labels, read_plan


@dataclass(frozen=True, eq=False)
class LatentSet:
    """x0 = scale (mean + deviation noise) of an image, or of its mirror image; shards are mapped, not read."""

    name: str
    folder: Path
    plan: EncodingPlan
    labels: Tensor  # int64 (N,)
    classes: int
    sha256: str
    count: int  # the first images of the folder
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.plan.channels, *self.plan.size)

    @property
    def latent_factor(self) -> int:
        return self.plan.factor

    @property
    def takes_noise(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device | str) -> LatentSet:
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def batch(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """float32 (n, C, h, w) on the device; without noise, the mean."""
        flips = torch.zeros(len(index), dtype=torch.int64) if mirrored is None else mirrored.cpu().long()
        moments = torch.from_numpy(self._moments(index.cpu().numpy(), flips.numpy())).to(self.device)  # (n, 2, C, h, w)
        mean, deviation = moments.unbind(1)
        return self.plan.scale * (mean if noise is None else mean + deviation * noise)

    def _moments(self, index: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """Read in the order in which they lie on disk, returned in the order asked for."""
        moments = np.empty((len(index), 2, *self.shape), dtype=np.float32)
        for place in np.argsort(index, kind="stable"):
            number, row = divmod(int(index[place]), self.plan.shard)
            moments[place] = self._shard(number)[row, flips[place]]
        return moments

    def _shard(self, number: int) -> np.memmap:
        return mapped(self.folder, self.plan, number)

    def expect(self, coming: Iterable[Tensor]) -> None:
        """Ask the system for the pages of the batch furthest ahead: those before it were asked for in their turn."""
        for image in list(coming)[-1].tolist():
            number, row = divmod(image, self.plan.shard)
            will_need(self._shard(number), row)

    def ready(self, count: int | None = None) -> LatentSet:
        """Mapped pages stay in the system's cache by themselves."""
        return self


@lru_cache(maxsize=4096)
def mapped(folder: Path, plan: EncodingPlan, number: int) -> np.memmap:
    """Opened once per process."""
    return open_shard(folder, plan, number)


def will_need(array: np.memmap, row: int) -> None:
    """A hint about one image's pages, where the system takes such."""
    pages: mmap.mmap | None = getattr(array, "_mmap", None)
    if pages is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    begin = array.offset % mmap.ALLOCATIONGRANULARITY + row * array.strides[0]  # the map starts on a boundary
    aligned = begin - begin % mmap.PAGESIZE
    pages.madvise(mmap.MADV_WILLNEED, aligned, min(begin + array.strides[0], len(pages)) - aligned)


def open_latents(folder: Path, name: str, count: int, labelled: bool = True) -> LatentSet:
    """The first images of latents that are all there; of the shards nothing is read yet."""
    plan, index = read_plan(folder), read_index(folder)
    require(0 < count <= plan.count, "count", count, f"within 1..{plan.count}, all that {folder} has")
    classes = plan.classes if labelled else 0
    labels = (
        torch.from_numpy(read_labels(folder, count, index["labels_sha256"]))
        if classes
        else torch.zeros(count, dtype=torch.int64)
    )
    meaning = f"{index['sha256']}, {count} images, {classes} classes"
    digest = hashlib.sha256(meaning.encode()).hexdigest()
    return LatentSet(name, folder, plan, labels, classes, digest, count, torch.device("cpu"))
