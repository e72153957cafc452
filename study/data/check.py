"""What lies at a path, and what is wrong with it: `python -m study.data check PATH`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from models.denoiser import require
from study.data.ahead import thread_count
from study.data.celeba import IMAGES
from study.data.cifar10 import FOLDER, TRAIN
from study.data.databases import DATA
from study.data.dataset import Found, dataset, find
from study.data.decode import Crop, DamagedImageError, decode, opened
from study.data.files import LSUN
from study.data.imagenet import ROOTS, SYNSET
from study.data.listing import Listing
from study.data.remembered import forget
from study.data.streamed import files_of

SHOWN = 20  # images named one by one
LATENTS = ("latents.json", "plan.json")  # in each part of a latent set; while it is encoded, the second alone
AT_ONCE = 1024  # images in the hands of the threads


@dataclass(frozen=True)
class Seen:
    """One image that was opened."""

    number: int
    width: int = 0
    height: int = 0
    complaint: str = ""


def guess(path: Path) -> str:
    """The data set that a path looks like."""
    if path.is_file():
        archive = {".zip": "zip", ".tar": "webdataset"}.get(path.suffix.lower())
        if archive is None:
            raise ValueError(
                f"path={str(path)!r} is not valid: must be a folder of images, a .zip or a .tar, not one file"
            )
        return archive
    if any((path / "train" / name).is_file() for name in LATENTS):
        return "latents"
    if (path / FOLDER).is_dir() or (path / TRAIN[0]).is_file():
        return "cifar10"
    if IMAGES in (path.name, *_folders(path)):
        return "celeba"
    for name, (category, _) in LSUN.items():
        if (path / f"{category}_train_lmdb").is_dir() or path.name.startswith(f"{category}_"):
            return f"lsun_{name}"
    if (path / DATA).is_file():
        return "lmdb"
    if any(SYNSET.fullmatch(name) for root in ROOTS for name in _folders(path / root / "train")) or any(
        SYNSET.fullmatch(name) for name in _folders(path)
    ):
        return "imagenet"
    return "webdataset" if next(path.rglob("*.tar"), None) else "folder"


def _folders(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []


def check(path: Path, name: str | None = None, size: int | None = None) -> tuple[list[str], list[str]]:
    """(what was found, what is wrong), a line each. Every image is decoded as training would."""
    path = path.expanduser().absolute()
    require(path.exists(), "path", str(path), "a file or folder that exists")
    name = name or guess(path)
    forget(name, path)
    offer = dataset(name)
    require(offer.on_disk, "name", name, "a set on disk")
    require(size is None or size > 0, "size", size, "1 or more")
    found = find(name, str(path))
    size = size or found.size or offer.size[0] * offer.latent_factor
    lines = [f"{path}: data={name}", *described(found, offer.classes)]
    files = files_of(name, path, size)
    if files is None:
        return lines, wrong_latents(path) if name == "latents" else []
    listing, crop = files
    seen = list(looked_at(listing, crop))
    lines += [*described_files(listing), *described_sizes(seen, crop)]
    return lines, [one.complaint for one in seen if one.complaint]


def wrong_latents(path: Path) -> list[str]:
    """Files that are not as they were written."""
    from study.latents.folder import problems  # it imports this package

    return list(problems(path))


def described(found: Found, usual: int) -> list[str]:
    kept = (
        f", {found.apart:,} kept apart"
        if found.apart
        else ", none kept apart: held-out and reference images come out of these"
    )
    return [
        f"  images   {found.train:,} to train on{kept}",
        f"  classes  {found.classes or 'none: unlabelled'}"
        + (f", usually {usual}" if usual not in (0, found.classes) else ""),
        f"  digest   {found.digest}",
    ]


def described_files(listing: Listing) -> list[str]:
    lines = [f"  bytes    {listing.sizes.sum():,}"]
    if listing.classes:
        counts = np.bincount(listing.labels[~listing.apart], minlength=listing.classes)
        names = f", {listing.class_names[0]} to {listing.class_names[-1]}" if listing.class_names else ""
        lines.append(f"  a class  {counts.min():,} to {counts.max():,} images{names}")
    return lines


def described_sizes(seen: list[Seen], crop: Crop) -> list[str]:
    whole = [one for one in seen if one.width]
    if not whole:
        return []
    smallest = min(whole, key=lambda one: min(one.width, one.height))
    largest = max(whole, key=lambda one: one.width * one.height)
    lines = [f"  pixels   {smallest.width} x {smallest.height} to {largest.width} x {largest.height}"]
    small = sum(min(one.width, one.height) < crop.size for one in whole)
    if small and crop.enlarges:
        lines.append(f"  small    {small:,} images are smaller than {crop.size} and will be enlarged")
    return lines


def looked_at(listing: Listing, crop: Crop) -> Iterator[Seen]:
    """Every image in order, with what its reader or decoder has against it."""
    from rich.console import Console
    from rich.progress import track

    def look(number: int) -> Seen:
        width = height = 0
        try:
            content = listing.read(number)
            width, height = dimensions(content)
            decode(content, crop, listing.full_name(number))
        except DamagedImageError as error:
            return Seen(number, width, height, str(error))
        return Seen(number, width, height)

    bar = Console(stderr=True)
    with ThreadPoolExecutor(thread_count()) as threads:
        numbers = track(range(len(listing)), "looking", console=bar, disable=not sys.stderr.isatty())
        for some in chunks(numbers, AT_ONCE):
            yield from threads.map(look, some)


def dimensions(content: bytes) -> tuple[int, int]:
    """Width and height by the header; zeros if that is damaged."""
    try:
        with opened(content) as image:
            return image.size
    except Exception:  # decoders raise what they like, and decoding says it better
        return 0, 0


def chunks(numbers: Iterable[int], size: int) -> Iterator[list[int]]:
    """A few at a time, so that a million results do not pile up before the first is asked for."""
    iterator = iter(numbers)
    while some := list(islice(iterator, size)):
        yield some


def report(lines: list[str], wrong: list[str]) -> str:
    shown = [f"  {line}" for line in wrong[:SHOWN]]
    more = [f"  and {len(wrong) - SHOWN:,} more"] if len(wrong) > SHOWN else []
    verdict = f"{len(wrong):,} image{'s' * (len(wrong) > 1)} cannot be used:" if wrong else "every image can be used"
    return "\n".join([*lines, verdict, *shown, *more])
