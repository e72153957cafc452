"""A latent data set on disk, all that a run needs of it: no image and no other file is looked at again.

<path>/train/  <path>/heldout/    latents (study/latents/files.py)
<path>/reference.npy              uint8 (N, 3, H, W): real images, for samples to be scored against
<path>/autoencoder/               a copy of what encoded them, to decode samples with
<path>/reference.json             labels of the reference images; size and checksum of these files, but for the latents
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from study.atomic import canonical_json, sha256_of, write_file, write_json
from study.data.images import ImageSet
from study.latents.files import (
    DAMAGED,
    INDEX,
    MISSING,
    EncodingPlan,
    LatentsError,
    damaged,
    open_array,
    read_index,
    read_json,
    read_plan,
)

REFERENCE, RECORD = "reference.npy", "reference.json"
AUTOENCODER = "autoencoder"
LATENT_SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class LatentFolder:
    """What the index files of a whole one say."""

    path: Path
    train: EncodingPlan
    heldout: EncodingPlan
    reference: int
    digest: str  # of all that is trained on and compared with

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


def read_record(path: Path) -> dict[str, Any]:
    """What is known, without reading them, of the reference images and the autoencoder."""
    record = read_json(path / RECORD)
    if not _is_record(record):
        raise LatentsError(f"{path / RECORD} does not describe reference images and an autoencoder: encode again")
    if record["sha256"] != _digest(record):
        raise LatentsError(f"{path / RECORD} {DAMAGED}")
    return record


def _is_record(tree: dict[str, Any]) -> bool:
    """Whether a digest can be taken of it, and every file looked up."""
    files, labels = tree.get("files"), tree.get("labels")
    if not isinstance(files, dict) or not isinstance(labels, list) or REFERENCE not in files:
        return False
    return all(isinstance(known, dict) and {"bytes", "sha256"} <= known.keys() for known in files.values())


def write_record(path: Path, labels: list[int]) -> None:
    """Of the files that are there."""
    names = [REFERENCE, *(f"{AUTOENCODER}/{file.name}" for file in sorted((path / AUTOENCODER).iterdir()))]
    files = {name: {"bytes": (path / name).stat().st_size, "sha256": sha256_of(path / name)} for name in names}
    record = {"labels": labels, "files": files}
    write_json(path / RECORD, {"sha256": _digest(record), **record})


def _digest(record: dict[str, Any]) -> str:
    """Of the reference images and their labels. An autoencoder's files may say where it lay: its weights are in the
    digests of the latents.
    """
    known = {"images": record["files"][REFERENCE]["sha256"], "labels": record["labels"]}
    return hashlib.sha256(canonical_json(known).encode()).hexdigest()


def write_reference(path: Path, images: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    """uint8 (N, 3, H, W), batch by batch."""

    def write(temporary: Path) -> None:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for batch in images:
            array[start : start + len(batch)] = batch
            start += len(batch)
        array.flush()

    write_file(path / REFERENCE, write)


def open_reference(path: Path, name: str, count: int, classes: int) -> ImageSet:
    """The first images, mapped rather than read."""
    record = read_record(path)
    images = open_array(path / REFERENCE, "c")  # torch wants it writable
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(record["labels"]):
        found = f"{images.dtype} {images.shape}"
        raise LatentsError(f"{path / REFERENCE} is {found}: must be uint8 ({len(record['labels'])}, 3, H, W)")
    labels = torch.tensor(record["labels"][:count], dtype=torch.int64)
    if not classes:
        labels = torch.zeros_like(labels)
    digest = hashlib.sha256(f"{record['sha256']}, {count} images, {classes} classes".encode()).hexdigest()
    return ImageSet(name, torch.from_numpy(images[:count]), labels, classes, sha256=digest)


def problems(path: Path) -> Iterator[str]:
    """One line for every file of a latent set that is not as it was written; reads all of them."""
    for split in LATENT_SPLITS:
        yield from damaged(path / split)
    yield from wrong_beside(path, thorough=True)


def wrong_beside(path: Path, thorough: bool) -> Iterator[str]:
    """The same of what lies beside the latents; unless it is to be thorough, files are looked at but not read."""
    for name, known in read_record(path)["files"].items():
        file = path / name
        if not file.exists():
            yield f"{file} {MISSING}"
        elif file.stat().st_size != known["bytes"]:
            yield f"{file} is damaged: it has {file.stat().st_size} bytes, not {known['bytes']}; encode again"
        elif thorough and sha256_of(file) != known["sha256"]:
            yield f"{file} {DAMAGED}"


def is_whole(path: Path) -> bool:
    """Whether what lies beside the latents is there, as far as sizes tell."""
    try:
        return (path / RECORD).exists() and not any(wrong_beside(path, thorough=False))
    except LatentsError:
        return False
