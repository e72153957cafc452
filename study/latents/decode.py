"""From what a run's network makes to images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from models.denoiser import require
from study.data import DataConfig, offered, to_uint8
from study.latents.autoencoder import INSTALL, load_autoencoder
from study.latents.folder import AUTOENCODER, read_folder, wrong_beside
from study.sample import Decode
from study.strict import ConfigError


def check_decoder(config: DataConfig) -> None:
    """Refuse, before anything is trained, samples of latents that could not be decoded in the end."""
    if offered(config).latent_factor == 1:
        return
    if find_spec("diffusers") is None:
        raise ConfigError(f"{INSTALL} (or sample.count=0)")
    path = Path(str(config.path)).expanduser()
    folder = path / AUTOENCODER
    valid = "the autoencoder that made the latents, to decode samples with (or sample.count=0)"
    require((folder / "config.json").is_file(), "data.path", str(folder), valid)
    wrong = next(wrong_beside(path, thorough=False), None)
    if wrong is not None:
        raise ConfigError(f"{wrong} (or sample.count=0)")


def decoder_of(config: DataConfig, device: torch.device) -> Decode:
    """For pixels, rounding; for latents, the autoencoder that made them, from its copy beside them."""
    if offered(config).latent_factor == 1:
        return to_uint8
    path = Path(str(config.path)).expanduser()
    plan = read_folder(path).train
    autoencoder = load_autoencoder(str(path / AUTOENCODER), plan.scale)
    same = autoencoder.digest() == plan.autoencoder_sha256
    require(same, "autoencoder", str(path / AUTOENCODER), f"the one that encoded {path}: its weights are others")
    return autoencoder.to(device).decode
