"""Images at a path, by number: their names, sizes and labels, and how the bytes of one are read."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from study.data.decode import SUFFIXES, DamagedImageError

LARGEST = 1 << 28  # bytes of one image file: more is no image, or an attempt to fill the memory
MOST_CLASSES = 1_000_000  # a number beyond is no class, and networks have a row for every class up to the largest
UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]"
)  # in a name: would end a line, colour a terminal, or not print


@dataclass(frozen=True, slots=True)
class Entry:
    """One image, before all are put in order."""

    name: str
    size: int  # bytes
    place: tuple[int, ...] = ()  # where an archive has it
    label: int | str | None = None  # a class number, or a class name to be numbered
    apart: bool = False  # of the images that the set itself keeps from training


Read: TypeAlias = Callable[[str, int, list[int]], bytes]
"""(name, bytes, place) -> content"""


@dataclass(frozen=True)
class Place:
    """A set that was found, before its images are listed, which may take minutes."""

    path: Path  # names are relative to it, or within it
    entries: Callable[[], Iterable[Entry]]
    read: Read
    files: tuple[Path, ...] = ()  # beside the images: when one changes, so may the list
    visited: list[str] | None = None  # images are files of their own: the folders looked into, once they are listed


@dataclass(frozen=True, eq=False)
class Listing:
    """In the order of their names, whatever order a file system or an archive lists them in."""

    path: Path
    names: Sequence[str]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]  # zeros where there are none
    apart: NDArray[np.bool_]
    classes: int  # 0: unlabelled
    class_names: tuple[str, ...]
    digest: str
    places: NDArray[np.int64]  # (N, k)
    reader: Read

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> bytes:
        """An image file's bytes; asked by many threads at once."""
        try:
            return self.reader(self.names[number], int(self.sizes[number]), self.places[number].tolist())
        except DamagedImageError:
            raise
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise DamagedImageError(f"{self.full_name(number)} cannot be read: {said}") from error

    def full_name(self, number: int) -> str:
        """What a person can find the image by."""
        return f"{self.path}: {shown(self.names[number])}"


def in_order(place: Place) -> Listing:
    """List the images: sort them, number the classes by their sorted names, and digest."""
    path, ordered = place.path, sorted(place.entries(), key=lambda entry: (entry.apart, entry.name))
    if not ordered:
        raise ValueError(f"path={str(path)!r} is not valid: holds no images ({' '.join(sorted(SUFFIXES))})")
    large = next((entry for entry in ordered if entry.size > LARGEST), None)
    if large is not None:
        raise ValueError(f"{path}: {shown(large.name)} has {large.size:,} bytes: more than any image")
    labels, names = numbered(path, ordered)
    apart = np.array([entry.apart for entry in ordered])
    return Listing(
        path=path,
        names=[entry.name for entry in ordered],
        sizes=np.array([entry.size for entry in ordered]),
        labels=labels,
        apart=apart,
        classes=0 if ordered[0].label is None else len(names) or int(labels.max()) + 1,
        class_names=names,
        digest=digest_of(ordered, labels),
        places=np.array([entry.place for entry in ordered], np.int64),
        reader=place.read,
    )


def numbered(path: Path, entries: Sequence[Entry]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers, and names if they have any: sorted, as ImageNet's synsets are."""
    odd = next((entry for entry in entries if type(entry.label) is not type(entries[0].label)), None)
    if odd is not None:
        have, lack = (entries[0], odd) if odd.label is None else (odd, entries[0])
        raise ValueError(f"{path}: {shown(lack.name)} has no label, and {shown(have.name)} has one")
    if entries[0].label is None:
        return np.zeros(len(entries), np.int64), ()
    for entry in entries:
        if isinstance(entry.label, int) and not 0 <= entry.label < MOST_CLASSES:
            raise ValueError(
                f"{path}: {shown(entry.name)} is of class {entry.label}: must be 0 to {MOST_CLASSES - 1:,}"
            )
    if isinstance(entries[0].label, int):
        return np.array([entry.label for entry in entries], np.int64), ()
    names = sorted({str(entry.label) for entry in entries if not entry.apart}) or sorted(
        {str(entry.label) for entry in entries}
    )
    number = {name: index for index, name in enumerate(names)}
    strange = next((entry for entry in entries if entry.label not in number), None)
    if strange is not None:
        raise ValueError(f"{path}: {shown(strange.name)} is of a class that no training image is of")
    return np.array([number[str(entry.label)] for entry in entries], np.int64), tuple(names)


def digest_of(entries: Sequence[Entry], labels: NDArray[np.int64]) -> str:
    """Of names, sizes, labels and parts, 16 hex digits: a change within a file that keeps its size goes unseen."""
    digest = hashlib.sha256()
    for entry, label in zip(entries, labels.tolist(), strict=True):
        shown_label = "" if entry.label is None else label
        digest.update(
            f"{entry.name}\0{entry.size}\0{shown_label}\0{int(entry.apart)}\n".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()[:16]


def is_image(name: str) -> bool:
    """By its suffix; what a Mac leaves in archives is not."""
    leaf = name.rpartition("/")[2]
    return posixpath.splitext(leaf)[1].lower() in SUFFIXES and not leaf.startswith("._")


def shown(name: str) -> str:
    """A name that stays on one line."""
    return UNSAFE.sub("?", name)


def read_tree(where: str, content: bytes) -> Any:
    """What a JSON file holds, whatever was done to it."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{where} cannot be read: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {str(error).splitlines()[0]}") from error


def labels_by_name(where: str, content: bytes) -> Mapping[str, int] | None:
    """EDM's `dataset.json`: {"labels": [[name, class], ...]}, or null for none."""
    tree = read_tree(where, content)
    given = tree.get("labels") if isinstance(tree, dict) else None
    if isinstance(tree, dict) and given is None:
        return None
    pairs: list[Any] = given if isinstance(given, list) else [None]
    for pair in pairs:
        whole = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
        if not whole:
            raise ValueError(f'{where} is not valid: must be {{"labels": [[file name, class number], ...]}}, or null')
    return dict(pairs)
