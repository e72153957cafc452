"""Precomputed latents of Stable Diffusion's autoencoder, as `python -m study.data encode` leaves them.

A run trains on them without the autoencoder; its samples are decoded by the copy that lies beside them.
"""

from __future__ import annotations

from pathlib import Path

from models.denoiser import require
from study.data.dataset import DataConfig, Dataset, Found, Split, register_on_disk
from study.data.source import Source

CHANNELS, FACTOR = 4, 8  # of Stable Diffusion's autoencoder
IMAGENET = (1_281_167, 2_000, 10_000)


def find_latents(path: Path) -> Found:
    from study.latents.folder import read_folder

    found = read_folder(path)
    plan = found.train
    shape = (plan.channels, plan.factor)
    require(shape == (CHANNELS, FACTOR), "channels, factor", shape, f"{(CHANNELS, FACTOR)}, as Stable Diffusion's")
    return Found(plan.count, found.heldout.count, plan.classes, found.digest, found.pixels, found.reference)


@register_on_disk(
    Dataset(
        name="latents",
        size=(32, 32),
        channels=CHANNELS,
        classes=1000,
        counts=IMAGENET,
        latent_factor=FACTOR,
        any_size=True,
    ),
    find_latents,
)
def open_split(config: DataConfig, split: Split) -> Source:
    """Latents to train and validate on; pixels to score against."""
    from study.latents.folder import open_reference
    from study.latents.latent_set import open_latents

    path, classes = Path(str(config.path)).expanduser(), int(config.classes or 0)
    if split == "reference":
        return open_reference(path, config.name, config.images(split), classes)
    return open_latents(path / split, config.name, config.images(split), labelled=classes > 0)
