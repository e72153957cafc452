"""CelebA's aligned images, cropped to the face as U-ViT and DiS do; no labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from study.data.dataset import Dataset
from study.data.folders import files_below, reader
from study.data.listing import Entry, Place
from study.data.streamed import register_files

IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"  # "000001.jpg 0": 0 train, 1 validation, 2 test
TRAIN = 162_770


def celeba_place(path: Path) -> Place:
    """`path` is the folder of the images or the one above; its official partition is used if it lies in either."""
    folder = path / IMAGES if (path / IMAGES).is_dir() else path
    nested = folder / IMAGES  # Kaggle's zip has one folder too many
    folder = nested if nested.is_dir() else folder
    if not folder.is_dir():
        raise ValueError(f"path={str(path)!r} is not valid: must be a folder with {IMAGES}/")
    beside = (place / PARTITION for place in (path, folder, folder.parent))
    partition = next((file for file in beside if file.is_file()), None)

    visited: list[str] = []

    def entries() -> list[Entry]:
        images = [Entry(name, size) for name, size in files_below(folder, visited)]
        parts = None if partition is None else read_partition(partition)
        return images if parts is None else [placed(entry, parts) for entry in images]

    return Place(folder, entries, reader(folder), () if partition is None else (partition,), visited)


def read_partition(file: Path) -> dict[str, str]:
    """{image: 0, 1 or 2}"""
    words = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    odd = next((line for line in words if len(line) != 2 or line[1] not in ("0", "1", "2")), None)
    if odd is not None:
        raise ValueError(f"{file}: {' '.join(odd)!r} is not an image's name and 0, 1 or 2")
    return {line[0]: line[1] for line in words}


def placed(entry: Entry, parts: dict[str, str]) -> Entry:
    if entry.name not in parts:
        raise ValueError(f"{PARTITION} has no line for {entry.name}")
    return replace(entry, apart=parts[entry.name] != "0")


register_files(
    Dataset(name="celeba", size=(64, 64), channels=3, classes=0, counts=(TRAIN, 2_000, 10_000)),
    celeba_place,
    rule="face",
)
