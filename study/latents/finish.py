"""What a latent set needs beside its latents: real images to be compared with, and the autoencoder that decodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from study.atomic import remove_leftovers, sync
from study.data import DataConfig, load, to_uint8
from study.latents.autoencoder import Autoencoder
from study.latents.encode import CLAIMS, once
from study.latents.folder import AUTOENCODER, is_whole, write_record, write_reference

BATCH = 64  # reference images read at once


def finish(out: Path, config: DataConfig, autoencoder: Autoencoder) -> None:
    """By whichever worker comes first; the others wait. What was lost or cut short later is made again."""

    def copy() -> None:
        remove_leftovers(out)
        _copy_autoencoder(out / AUTOENCODER, autoencoder)
        _copy_reference(out, config)

    once(out / CLAIMS, lambda: is_whole(out), copy)


def _copy_autoencoder(folder: Path, autoencoder: Autoencoder) -> None:
    if folder.exists():  # of a killed worker: maybe half of it
        shutil.rmtree(folder)
    cast(Any, autoencoder.network).save_pretrained(str(folder), safe_serialization=True)
    for file in folder.iterdir():  # as readable as the folder: stores are shared
        file.chmod(folder.stat().st_mode & 0o666)
        sync(file)


def _copy_reference(out: Path, config: DataConfig) -> None:
    source = load(config, "reference")
    labels = source.labels.tolist() if source.classes else [0] * len(source)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(source), BATCH):
            index = torch.arange(start, min(start + BATCH, len(source)))
            yield to_uint8(source.batch(index)).numpy()  # exactly the bytes it was made of

    write_reference(out, batches(), (len(source), *source.shape))
    write_record(out, labels)
