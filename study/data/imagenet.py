"""ImageNet-1k as it is unpacked: a folder per synset, numbered in their sorted order, below train/ and val/."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from study.data.dataset import Dataset
from study.data.folders import files_below, labelled_entries, reader, two_parts
from study.data.listing import Entry, Place
from study.data.streamed import register_files

SYNSET = re.compile(r"n\d{8}")
ROOTS = ("", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC")  # where train/ lies in the usual downloads
ANSWERS = "LOC_val_solution.csv"  # in Kaggle's: the classes of the validation images, which lie in one folder
IMAGES = 1_281_167


def imagenet_place(path: Path) -> Place:
    """`path` holds train/ and perhaps val/, or the synsets' folders themselves."""
    if not path.is_dir():
        raise ValueError(f"path={str(path)!r} is not valid: must be a folder with train/ and val/")
    root = next((path / root for root in ROOTS if (path / root / "train").is_dir()), None)
    if root is None:
        check_synsets(path)
        return two_parts(path, path, None)
    train, apart = root / "train", root / "val"
    check_synsets(train)
    if not apart.is_dir():
        return two_parts(root, train, None)
    answers = next((file for file in (path / ANSWERS, root / ANSWERS) if file.is_file()), None)
    if answers is None or any(apart.glob("n*/")):
        check_synsets(apart)
        return two_parts(root, train, apart)

    visited: list[str] = []

    def entries() -> list[Entry]:
        return [*labelled_entries(root, train, visited), *answered(root, apart, answers, visited)]

    return Place(root, entries, reader(root), (answers,), visited)


def check_synsets(part: Path) -> None:
    """Only folders named as synsets: anything else would be numbered along with them."""
    folders = sorted(folder.name for folder in part.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    odd = next((name for name in folders if not SYNSET.fullmatch(name)), None)
    if odd is not None:
        raise ValueError(f"{part / odd} is not named after a synset such as n01440764: remove it, or use data=folder")
    if not folders:
        hint = f" (or {ANSWERS} beside it)" if part.name == "val" else ""
        raise ValueError(f"{part} has no class folders such as n01440764: sort its images into them{hint}")


def answered(root: Path, part: Path, answers: Path, visited: list[str]) -> list[Entry]:
    """Validation images with the classes that Kaggle's table gives: `ImageId,PredictionString`, synset first."""
    with answers.open(encoding="utf-8", newline="") as file:
        known = {row[0]: row[1].split()[0] for row in csv.reader(file) if len(row) == 2 and SYNSET.match(row[1])}
    entries = []
    for name, size in files_below(part, visited):
        label = known.get(Path(name).stem)
        if label is None:
            raise ValueError(f"{answers} does not say the class of {part / name}")
        entries.append(Entry(f"{part.relative_to(root)}/{name}", size, label=label, apart=True))
    return entries


# A few of ImageNet's images are smaller than 256 pixels; ADM's rule enlarges them.
register_files(
    Dataset(name="imagenet", size=(256, 256), channels=3, classes=1000, counts=(IMAGES, 2_000, 10_000)),
    imagenet_place,
    enlarges=True,
)
