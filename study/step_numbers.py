"""The few numbers that a training step is told by the host: its rates, and how far its averages follow."""

from __future__ import annotations

import torch
from torch import Tensor

from study.config import TrainConfig
from study.optimizer import learning_rate

Number = float | Tensor
"""A number itself, or the 0-d tensor on the device that a graph reads it from."""


class StepNumbers:
    """Those of one step. Python's own at first; `on` a device, each has its place there and never leaves it."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.rate = config.lr  # the scheduled one, for the log
        self.renewals: list[Number] = [0.0] * len(config.ema)  # shares of new weights in averages
        self.seen: Number = 0  # images, this step's included

    def on(self, device: torch.device, optimizer: torch.optim.AdamW) -> None:
        self.renewals = [torch.zeros((), device=device) for _ in self.renewals]
        self.seen = torch.zeros((), dtype=torch.int64, device=device)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)  # float32: nothing else does AdamW's kernel read

    def decide(self, images: int, count: int, optimizer: torch.optim.AdamW) -> None:
        """For a step on `count` images after the first `images`."""
        self.rate = learning_rate(self.config, images)
        for group in optimizer.param_groups:
            group["lr"] = _told(group["lr"], self.rate * group["lr_scale"])
        # Averages start by forgetting faster, so that early ones are not all noise.
        steps = -(-images // self.config.batch)
        shares = [1 - min(decay, (1 + steps) / (10 + steps)) for decay in self.config.ema]
        self.renewals = [_told(place, share) for place, share in zip(self.renewals, shares, strict=True)]
        self.seen = _told(self.seen, images + count)


def renew(averages: list[Tensor], weights: list[Tensor], share: Number) -> None:
    """average += share (weight - average), in place."""
    if isinstance(share, Tensor):
        torch._foreach_lerp_(averages, weights, [share] * len(averages))
    else:
        torch._foreach_lerp_(averages, weights, share)


def _told(place: Number, value: float) -> Number:
    return place.fill_(value) if isinstance(place, Tensor) else value
