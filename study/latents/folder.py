"""A latent data set on disk, all that a run needs of it: no image and no other file is looked at again.

<path>/train/  <path>/heldout/    latents (study/latents/files.py)
<path>/reference.npy              uint8 (N, 3, H, W): real images, for samples to be scored against
<path>/reference.json             their labels and checksum
<path>/autoencoder/               a copy of what encoded them, to decode samples with
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from study.atomic import sha256_of, write_file, write_json
from study.data.images import ImageSet
from study.latents.files import INDEX, EncodingPlan, LatentsError, damaged, first_line, read_index, read_json, read_plan

REFERENCE, RECORD = "reference.npy", "reference.json"
LATENT_SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class LatentFolder:
    """What the index files of a whole one say."""

    path: Path
    train: EncodingPlan
    heldout: EncodingPlan
    reference: int
    digest: str  # of everything in it

    @property
    def pixels(self) -> int:
        """Along a side of the images."""
        return self.train.size[0] * self.train.factor


def read_folder(path: Path) -> LatentFolder:
    """Refused in one line unless every part is there."""
    times = tuple((path / name).stat().st_mtime_ns if (path / name).exists() else 0 for name in _indices())
    return _read_folder(path, times)


def _indices() -> list[str]:
    return [*(f"{split}/{INDEX}" for split in LATENT_SPLITS), RECORD]


@lru_cache(maxsize=16)
def _read_folder(path: Path, times: tuple[int, ...]) -> LatentFolder:
    sums = [str(read_index(path / split)["sha256"]) for split in LATENT_SPLITS]
    record = read_record(path)
    train, heldout = (read_plan(path / split) for split in LATENT_SPLITS)
    digest = hashlib.sha256(" ".join([*sums, str(record["sha256"])]).encode()).hexdigest()
    return LatentFolder(path, train, heldout, len(record["labels"]), digest[:32])


def read_record(path: Path) -> dict[str, list[int] | str]:
    """What is known of the reference images without reading them."""
    record = read_json(path / RECORD)
    if not {"sha256", "labels", "classes"} <= record.keys():
        raise LatentsError(f"{path / RECORD} does not describe reference images")
    return record


def write_reference(path: Path, images: Iterator[np.ndarray], shape: tuple[int, ...], labels: list[int]) -> None:
    """uint8 (N, 3, H, W), batch by batch; the record last."""

    def write(temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for batch in images:
            array[start : start + len(batch)] = batch
            start += len(batch)
        array.flush()

    write_file(path / REFERENCE, write)
    write_json(path / RECORD, {"sha256": sha256_of(path / REFERENCE), "classes": max(labels) + 1, "labels": labels})


def open_reference(path: Path, name: str, count: int, classes: int) -> ImageSet:
    """The first images, mapped rather than read."""
    record = read_record(path)
    try:
        images = np.load(path / REFERENCE, mmap_mode="c", allow_pickle=False)[:count]  # c: torch wants it writable
    except (OSError, ValueError, EOFError) as error:
        raise LatentsError(f"{path / REFERENCE} cannot be read: {first_line(error)}") from error
    labels = torch.tensor(record["labels"][:count], dtype=torch.int64)
    if not classes:
        labels = torch.zeros_like(labels)
    digest = hashlib.sha256(f"{record['sha256']}, {count} images, {classes} classes".encode()).hexdigest()
    return ImageSet(name, torch.from_numpy(images), labels, classes, sha256=digest)


def problems(path: Path) -> Iterator[str]:
    """One line for every file of a latent set that is not as it was written; reads all of them."""
    for split in LATENT_SPLITS:
        yield from damaged(path / split)
    if not (path / REFERENCE).exists():
        yield f"{path / REFERENCE} is missing"
    elif sha256_of(path / REFERENCE) != read_record(path)["sha256"]:
        yield f"{path / REFERENCE} is damaged: its checksum is not the one recorded"
