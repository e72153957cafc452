"""Lists of many images, kept from one process to the next: a million files on a shared disk take minutes to list.

A list is used again only while every folder that was looked into, empty ones too, and every archive and file of labels
is as it was then. An image written over in place, under its old name, changes no folder: that goes unseen, also where
its size is another. `python -m study.data check` always looks again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.atomic import user_cache, write_file
from study.data.listing import Listing, Place, in_order
from study.npz import read_npz_file

log = logging.getLogger(__name__)

FORMAT = 2  # raise when the same files would be listed otherwise
FEWEST = 10_000  # images: fewer are listed at once
SETTLED = 2.0  # seconds: what changed as recently may change again without its time showing it


def folder() -> Path:
    return user_cache() / "listings"


def remembered(name: str, path: Path, place: Place) -> Listing:
    """The images of the set `name` found at `path`: as listed before if nothing has changed, or listed now."""
    file = file_of(name, path)
    known = recalled(file, place)
    return known if known is not None else listed(file, place)


def forget(name: str, path: Path) -> None:
    with suppress(OSError):
        file_of(name, path).unlink(missing_ok=True)


def file_of(name: str, path: Path) -> Path:
    key = hashlib.sha256(f"{FORMAT}/{name}/{path}".encode("utf-8", "surrogateescape"))
    return folder() / f"{key.hexdigest()[:32]}.npz"


def listed(file: Path, place: Place) -> Listing:
    """List now, and remember it in `file` if it was long."""
    began = time.time()
    listing = in_order(place)
    if len(listing) >= FEWEST:
        log.info("listed %d images in %.0f seconds", len(listing), time.time() - began)
        stamps = stamps_of(watched(place))
        if all(changed / 1e9 < began - SETTLED for _, changed, _ in stamps):
            with suppress(OSError):  # a cache that cannot be written is none
                file.parent.mkdir(parents=True, exist_ok=True)
                write_file(file, lambda temporary: save(temporary, listing, stamps), lasting=False)
    return listing


Stamp = tuple[str, int, int]
"""(path, when it changed in ns, bytes)"""


def watched(place: Place) -> list[str]:
    """Everything whose change may change the list, once that is made."""
    folders = set() if place.visited is None else {str(place.path), *place.visited}
    return sorted(folders | {str(file) for file in place.files})


def stamps_of(paths: Sequence[str]) -> list[Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: str) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return (path, 0, -1)  # it is not there, which is a state too
    # ctime: rsync and tar set a folder's mtime back once they have filled it
    return (path, status.st_ctime_ns, status.st_size if os.path.isfile(path) else 0)


def save(file: Path, listing: Listing, stamps: list[Stamp]) -> None:
    facts = {"classes": listing.classes, "class_names": listing.class_names, "digest": listing.digest, "stamps": stamps}
    with file.open("wb") as opened:
        np.savez(
            opened,
            facts=_bytes(json.dumps(facts)),
            names=_bytes("\0".join(listing.names)),
            sizes=listing.sizes,
            labels=listing.labels,
            apart=listing.apart,
            places=listing.places,
        )


def recalled(file: Path, place: Place) -> Listing | None:
    """What is remembered, unless something has changed since, or it cannot be read."""
    try:
        arrays = read_npz_file(file)
        facts = json.loads(_text(arrays["facts"]))
        return _listing(facts, arrays, place) if _still(facts["stamps"], place) else None
    except (ValueError, TypeError, KeyError):
        return None


def _still(stamps: list[list[Any]], place: Place) -> bool:
    paths = [path for path, _, _ in stamps]
    return {str(file) for file in place.files} <= set(paths) and [list(now) for now in stamps_of(paths)] == stamps


def _listing(facts: dict[str, Any], arrays: dict[str, NDArray[Any]], place: Place) -> Listing:
    names = _text(arrays["names"]).split("\0")
    if not len(names) == len(arrays["sizes"]) == len(arrays["labels"]) == len(arrays["apart"]) == len(arrays["places"]):
        raise ValueError("arrays of unequal length")
    return Listing(
        path=place.path,
        names=names,
        sizes=arrays["sizes"],
        labels=arrays["labels"],
        apart=arrays["apart"],
        classes=facts["classes"],
        class_names=tuple(facts["class_names"]),
        digest=facts["digest"],
        places=arrays["places"],
        reader=place.read,
    )


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)


def _text(array: NDArray[Any]) -> str:
    return array.tobytes().decode("utf-8", "surrogateescape")
