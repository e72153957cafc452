"""The embedded feature extractor: a small convolutional classifier seen at three depths, and the pixels' roughness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.denoiser import require
from study.data import to_float

SHARES = (1.0, 0.3, 0.3, 0.25)  # spread of each group of features: class, first two convolutions, roughness


@dataclass(frozen=True)
class ExtractorConfig:
    channels: int
    side: int
    classes: int
    widths: tuple[int, ...]  # channels of each stage; a stage halves the side
    hidden: int

    @property
    def features(self) -> int:
        return self.hidden + 2 * self.widths[0] + 3 * self.channels


class Extractor(nn.Module):
    """uint8 images -> features (B, d) and class logits (B, classes).

    The unit-length hidden layer tells classes and shapes apart but gathers garbage in one spot, so the
    first two layers' mean activations stand beside it: they see blur, contrast and block edges. Having been
    trained with noise they are calm under it; what sees noise is the mean size of second differences.
    """

    mean: Tensor  # (d,) of the training images' raw features
    gain: Tensor  # (d,)

    def __init__(self, config: ExtractorConfig) -> None:
        super().__init__()
        self.config = config
        inner = (config.channels, *config.widths)
        self.stages = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)])
            for before, after in zip(inner, config.widths, strict=False)
        )
        cells = (config.side >> len(config.widths)) ** 2
        self.hidden = nn.Linear(config.widths[-1] * cells, config.hidden)
        self.head = nn.Linear(config.hidden, config.classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("gain", torch.ones(config.features))

    def forward(self, images: Tensor) -> Tensor:
        """Centred features whose mean square over the training images is 1: uint8 (B, C, H, W) -> (B, d)."""
        return (torch.cat(self.groups(self.prepare(images)), dim=1) - self.mean) * self.gain

    def classify(self, images: Tensor) -> Tensor:
        return self.logits(self.prepare(images))

    def prepare(self, images: Tensor) -> Tensor:
        expected = (self.config.channels, self.config.side, self.config.side)
        require(images.dtype == torch.uint8, "images.dtype", images.dtype, "torch.uint8")
        require(
            tuple(images.shape[1:]) == expected, "images.shape", tuple(images.shape), f"(N, C, H, W) = N, {expected}"
        )
        return to_float(images)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.groups(x)[0])

    def groups(self, x: Tensor) -> tuple[Tensor, ...]:
        """Float images -> hidden layer (B, hidden), means of two convolutions (B, width) each, roughness (B, 3 C)."""
        rough = roughness(x)
        low_level = []
        for stage in self.stages:
            first, second = cast(nn.ModuleList, stage)
            x = F.relu(first(x))
            low_level.append(x.mean(dim=(2, 3)))
            x = F.relu(second(x))
            low_level.append(x.mean(dim=(2, 3)))
            x = F.avg_pool2d(x, 2)
        hidden = F.relu(self.hidden(x.flatten(1)))
        return F.normalize(hidden, dim=1) * self.config.hidden**0.5, low_level[0], low_level[1], rough

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Set `mean` and `gain` from float images, so that each group has its share of the spread."""
        groups = self.groups(x)
        gains = [
            torch.full((group.shape[1],), share / float(group.var(dim=0).sum().sqrt()))
            for group, share in zip(groups, SHARES, strict=True)
        ]
        whole = (self.config.features / sum(share**2 for share in SHARES)) ** 0.5
        self.mean.copy_(torch.cat(groups, dim=1).mean(dim=0))
        self.gain.copy_(torch.cat(gains) * whole)


def roughness(x: Tensor) -> Tensor:
    """Mean size of the second differences across, down and mixed, of each channel: (B, C, H, W) -> (B, 3 C)."""
    across = x[..., 2:] - 2 * x[..., 1:-1] + x[..., :-2]
    down = x[..., 2:, :] - 2 * x[..., 1:-1, :] + x[..., :-2, :]
    mixed = x[..., 1:, 1:] - x[..., 1:, :-1] - x[..., :-1, 1:] + x[..., :-1, :-1]
    return torch.cat([each.abs().mean(dim=(2, 3)) for each in (across, down, mixed)], dim=1)
