"""A labelled set of small images as two resident tensors, and the two ways between bytes and floats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.denoiser import require


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1], on the device the images are on."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 0..255 by rounding, out-of-range values clipped: the inverse of `to_float`."""
    require(bool(torch.isfinite(images).all()), "images", "NaN or infinity", "finite values")
    return images.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def flipped(images: Tensor, mirrored: Tensor | None) -> Tensor:
    """(n, C, H, W), those `mirrored` (n,) flipped left to right."""
    return images if mirrored is None else torch.where(mirrored[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A `Source` small enough to live on the device.

    Sets of one config are cached and shared: index them, never write into them.
    """

    name: str
    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    classes: int  # labels run from 0 to classes - 1; 0: unlabelled
    latent_factor: int = 1  # pixels per cell along a side
    sha256: str = field(default="", repr=False)  # of the arrays and their shapes; computed unless given

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        require(images.dtype == torch.uint8, "images.dtype", images.dtype, "torch.uint8 (see `to_uint8`)")
        require(images.ndim == 4 and images.numel() > 0, "images.shape", tuple(images.shape), "(N, C, H, W), not empty")
        require(labels.dtype == torch.int64, "labels.dtype", labels.dtype, "torch.int64")
        require(labels.shape == images.shape[:1], "labels.shape", tuple(labels.shape), "one label per image")
        first, last = int(labels.min()), int(labels.max())
        valid = first >= 0 and last < max(self.classes, 1)
        require(valid, "labels", [first, last], f"within 0..{max(self.classes, 1) - 1}")
        if not self.sha256:
            object.__setattr__(self, "sha256", _digest(images, labels))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[2], self.images.shape[3]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return (self.channels, *self.size)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def takes_noise(self) -> bool:
        return False

    def to(self, device: torch.device | str) -> ImageSet:
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batch(self, index: Tensor, mirrored: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """float32 (n, C, H, W) in [-1, 1], of the images `index` (n,), those `mirrored` (n,) flipped left to right."""
        x0 = self.to_float(self.images[index.to(self.device)])
        return flipped(x0, mirrored)

    def expect(self, coming: Iterable[Tensor]) -> None:
        """All of it is at hand already."""

    def ready(self, count: int | None = None) -> ImageSet:
        return self

    def to_float(self, images: Tensor) -> Tensor:
        """What the network sees: float32 in [-1, 1]."""
        return to_float(images)


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(str((tuple(images.shape), tuple(labels.shape))).encode())
    for array in (images, labels):
        digest.update(array.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
