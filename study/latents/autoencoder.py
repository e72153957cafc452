"""Stable Diffusion's KL autoencoder, from a folder or a model hub: pixels to latents and back.

The vector-quantised ones of latent diffusion, from a folder, decode as well; they have no posterior to encode to.

Training never gets here: it reads latents from disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.denoiser import require
from study.data.images import to_uint8
from study.sample import weights_digest
from study.strict import ConfigError

INSTALL = "the latents extra is not installed: pip install 'diffusion-backbone-study[latents]'"
SLICE = 8  # images encoded or decoded at once: the rest of a batch waits, so that memory stays small
PARTS = ("", "vae", "vqvae")  # where in a folder it may be: alone, or in a whole pipeline
KL, VQ = "AutoencoderKL", "VQModel"


class Autoencoder(nn.Module):
    """Latents are `scale` times the encoder's, so that a network sees numbers of about unit variance."""

    def __init__(self, network: nn.Module, name: str, scale: float | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        config = cast(Any, network).config
        self.scale = float(config.scaling_factor if scale is None else scale)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        require(self.scale > 0, "scale", self.scale, "above 0")
        require(not config.get("shift_factor"), "shift_factor", config.get("shift_factor"), "none, as in SD's")

    @torch.no_grad()
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> mean and standard deviation (B, C, h, w) of the posterior, not yet scaled."""
        kind = type(self.network).__name__
        require(kind == KL, "autoencoder", kind, f"{KL}: another has no posterior that latents are drawn from")
        parts = [cast(Any, self.network).encode(part).latent_dist for part in images.split(SLICE)]
        return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> uint8 (B, 3, H, W)."""
        shape = tuple(latents.shape)
        require(shape[1] == self.channels, "latents.shape", shape, f"(B, {self.channels}, h, w)")
        plain = latents.to(next(self.network.parameters()).dtype) / self.scale
        with torch.autocast(latents.device.type, enabled=False):
            parts = [to_uint8(cast(Any, self.network).decode(part).sample.float()) for part in plain.split(SLICE)]
        return torch.cat(parts)

    def digest(self) -> str:
        """Of the weights, wherever they lie."""
        return weights_digest(self.network)


def load_autoencoder(name: str, scale: float | None = None) -> Autoencoder:
    """From a folder (of the autoencoder, or of a pipeline that has one), or by its id on the hub."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(INSTALL) from error
    folder = Path(name)
    places = [folder / part for part in PARTS]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None and (folder.exists() or name.startswith((".", "/"))):
        raise ConfigError(f"autoencoder={name!r} is not valid: must be a folder with config.json and weights")
    try:
        kind = _kind(found)
        require(kind in (KL, VQ), "_class_name", kind, f"{KL} or {VQ}")
        of_kind = getattr(diffusers, kind)
        local = found is not None
        network = of_kind.from_pretrained(str(found or name), local_files_only=local, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"autoencoder={name!r} cannot be loaded: {reason}") from error
    return Autoencoder(network, name, scale)


def _kind(folder: Path | None) -> str:
    """Which of diffusers' classes a folder is of; what is on the hub is taken for the usual one."""
    if folder is None:
        return KL
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name", KL))
