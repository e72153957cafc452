"""SiT (Ma et al., arXiv:2401.08740): DiT's network, whose time runs from noise (0) to image (1).

Only for weights trained elsewhere: a DiT trained here under `process=flow` is told its time as any backbone is.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from models import TIME_SCALE, Denoiser
from models.dit import DiT, DiTConfig


class SiT(Denoiser):
    """Predicts our dx/ds, s from image to noise: the official velocity's negative, at the opposite time."""

    config: DiTConfig

    def __init__(self, config: DiTConfig, wide_head: bool) -> None:
        """`wide_head`: as published, with outputs for a variance that nothing reads."""
        super().__init__(replace(config, learn_sigma=False))
        self.network = DiT(replace(config, learn_sigma=wide_head))

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return -self.network.denoise(x, 1 - t / TIME_SCALE, y)[:, : self.config.channels]

    def reference_key(self, key: str) -> str:
        return key.removeprefix("network.")
