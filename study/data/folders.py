"""Images as files below a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from study.data.listing import Entry, Place, Read, is_image, labels_by_name

TRAIN, APART = "train", ("val", "valid", "validation", "test")  # names of sub-folders that are parts, not classes
LABELS = "dataset.json"


def folder_place(path: Path) -> Place:
    """Any folder: parts `train` and `val` if it has them; labels from `dataset.json`, or from folders below a part."""
    if not path.is_dir():
        raise ValueError(f"path={str(path)!r} is not valid: must be a folder of images")
    if (path / TRAIN).is_dir():
        kept = next((name for name in APART if (path / name).is_dir()), None)
        return two_parts(path, path / TRAIN, None if kept is None else path / kept)
    visited: list[str] = []
    return Place(path, lambda: labelled_entries(path, path, visited), reader(path), (path / LABELS,), visited)


def two_parts(root: Path, train: Path, apart: Path | None) -> Place:
    """Names relative to `root`, of which both are part."""
    files = tuple(part / LABELS for part in (train, apart) if part is not None)
    visited: list[str] = []
    return Place(root, lambda: entries_of_parts(root, train, apart, visited), reader(root), files, visited)


def entries_of_parts(root: Path, train: Path, apart: Path | None, visited: list[str]) -> list[Entry]:
    entries = labelled_entries(root, train, visited)
    if not entries:
        raise ValueError(f"path={str(root)!r} is not valid: {train} holds no images")
    if apart is not None:
        kept = labelled_entries(root, apart, visited, is_apart=True)
        if kept and (kept[0].label is None) != (entries[0].label is None):
            have, lack = (train, apart) if kept[0].label is None else (apart, train)
            raise ValueError(f"{lack} has images without class folders, and {have} has class folders: sort it likewise")
        entries += kept
    return entries


def labelled_entries(root: Path, part: Path, visited: list[str], is_apart: bool = False) -> list[Entry]:
    """Images below `part`, each of the class that `dataset.json` says, or without that its first folder names."""
    known = labels_file(part)
    by_folder = known is None and not (part / LABELS).is_file()
    prefix = "" if part == root else f"{part.relative_to(root).as_posix()}/"
    entries = []
    for name, size in files_below(part, visited):
        if known is not None and name not in known:
            raise ValueError(f"{part / LABELS} has no label for {name}")
        folder = name.partition("/")[0] if by_folder and "/" in name else None
        entries.append(Entry(prefix + name, size, label=folder if known is None else known[name], apart=is_apart))
    loose = next((entry for entry in entries if entry.label is None), None)
    in_class = next((entry for entry in entries if entry.label is not None), None)
    if loose is not None and in_class is not None:
        raise ValueError(f"{root / loose.name} lies beside class folders such as {in_class.label}/")
    return entries


def labels_file(folder: Path) -> dict[str, int] | None:
    """None: there is none, or it says that there are no labels."""
    file = folder / LABELS
    if not file.is_file():
        return None
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    known = labels_by_name(str(file), content)
    return None if known is None else dict(known)


def files_below(folder: Path, visited: list[str]) -> Iterator[tuple[str, int]]:
    """(name relative to the folder, bytes) of every image; links are followed, but not in circles.

    Every folder looked into is added to `visited`, also those that hold nothing: one day they may.
    """
    yield from _walk(str(folder), "", frozenset(), visited)


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]], visited: list[str]) -> Iterator[tuple[str, int]]:
    visited.append(folder)
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ValueError(f"{folder} leads back to a folder it lies in")
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here}, visited)
        elif is_image(entry.name):
            yield prefix + entry.name, _size_of(entry)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        status = entry.stat()
    except OSError as error:
        raise ValueError(f"{entry.path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{entry.path} is not a file: must be an image")
    return status.st_size


def reader(root: Path) -> Read:
    folder = str(root)

    def read(name: str, size: int, place: list[int]) -> bytes:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read()

    return read
