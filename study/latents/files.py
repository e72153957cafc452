"""Latents on disk: one folder per split, whose shards are plain .npy files that are read by memory map.

<folder>/plan.json            what is to be encoded, by what: every worker must mean the same
<folder>/00012.npy            float (n, 2, 2, C, h, w): image, (as it is, mirrored), (mean, deviation)
<folder>/00012.json           its checksum and labels; a shard without it does not exist
<folder>/latents.json         written last: all shards, and one checksum over theirs
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.denoiser import require, require_choice
from study.atomic import canonical_json, sha256_of, write_file, write_json
from study.strict import from_tree
from study.strict_json import parse_json

FORMAT = 1
DTYPES = ("float32", "float16")
MISSING = "is missing: encode again"
DAMAGED = "is damaged: its checksum is not the one recorded; remove it, and encode again"
PLAN, INDEX, LABELS = "plan.json", "latents.json", "labels.npy"


class LatentsError(ValueError):
    """Latents that are not whole, not the ones expected, or damaged."""


@dataclass(frozen=True)
class EncodingPlan:
    """All that the bytes of a folder depend on, and how they are cut into files.

    The checksum of a set covers the cut, `shard` and `batch`: it is made of those of the files, and so the same latents
    in files of another length are another set, which a run does not take for the one it was begun with.
    """

    data: str  # what the images are
    images_sha256: str
    count: int
    classes: int
    size: tuple[int, int]  # of the latents
    channels: int
    factor: int  # pixels per cell along a side
    autoencoder: str
    autoencoder_sha256: str
    scale: float  # by which a network sees latents multiplied
    dtype: str = "float32"
    shard: int = 1024  # images per file
    batch: int = 32  # images encoded at once: rounding may depend on it
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("count", "channels", "factor", "shard", "batch"):
            require(getattr(self, name) > 0, name, getattr(self, name), "1 or more")
        require(min(self.size) > 0, "size", self.size, "1 or more")
        require_choice("dtype", self.dtype, DTYPES)
        require(self.format == FORMAT, "format", self.format, str(FORMAT))

    @property
    def shards(self) -> int:
        return math.ceil(self.count / self.shard)

    def part(self, number: int) -> range:
        """The images of one shard."""
        return range(number * self.shard, min((number + 1) * self.shard, self.count))

    @property
    def bytes(self) -> int:
        """On disk, but for a few small files."""
        return bytes_of(self.count, self.channels, self.size, np.dtype(self.dtype).itemsize)


def bytes_of(count: int, channels: int, size: tuple[int, int], each: int) -> int:
    """Mean and deviation of every image and of its mirror image, each number taking that many bytes."""
    return count * 4 * channels * math.prod(size) * each


@dataclass(frozen=True)
class Shard:
    """What is known of one file without reading it."""

    number: int
    images: int
    sha256: str
    labels: tuple[int, ...]


def claim_plan(folder: Path, plan: EncodingPlan) -> None:
    """Make the folder for these latents, or refuse one that is for others."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PLAN).exists():
        write_json(folder / PLAN, asdict(plan))
    found = read_plan(folder)
    for field in fields(EncodingPlan):
        wanted, has = getattr(plan, field.name), getattr(found, field.name)
        if wanted != has and field.name != "autoencoder":  # the same weights may lie elsewhere
            raise LatentsError(f"{field.name}={wanted!r} is not valid: {folder} was begun with {has!r}")


def read_plan(folder: Path) -> EncodingPlan:
    tree = read_json(folder / PLAN)
    try:
        return from_tree(EncodingPlan, tree)
    except ValueError as error:
        raise LatentsError(f"{folder / PLAN} does not describe latents: {error}") from error


def write_shard(folder: Path, number: int, array: np.ndarray, labels: np.ndarray) -> None:
    """The record, with the checksum, last."""
    path = shard_path(folder, number)
    write_file(path, lambda temporary: save_array(temporary, array))
    record = {"images": len(array), "sha256": sha256_of(path), "labels": labels.tolist()}
    write_json(path.with_suffix(".json"), record)


def save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def read_shard(folder: Path, number: int) -> Shard | None:
    """The record of a shard; None if it, or the shard, is not there yet."""
    array = shard_path(folder, number)
    path = array.with_suffix(".json")
    if not path.exists() or not array.exists():
        return None
    record = read_json(path)
    try:
        return Shard(number, int(record["images"]), str(record["sha256"]), tuple(map(int, record["labels"])))
    except (KeyError, TypeError, ValueError) as error:
        raise LatentsError(f"{path} is damaged: {error}") from error


def conclude(folder: Path, plan: EncodingPlan) -> None:
    """Write the index, for the last shard is there."""
    index, labels = _listed(folder, plan)
    write_file(folder / LABELS, lambda temporary: temporary.write_bytes(labels))
    write_json(folder / INDEX, index)


def is_concluded(folder: Path, plan: EncodingPlan) -> bool:
    """Whether the index and the labels are those of these shards."""
    if not (folder / INDEX).exists() or not (folder / LABELS).exists():
        return False
    index, _ = _listed(folder, plan)
    return read_json(folder / INDEX) == index and sha256_of(folder / LABELS) == index["labels_sha256"]


def _listed(folder: Path, plan: EncodingPlan) -> tuple[dict[str, Any], bytes]:
    """The index and the content of the file of labels, from the records of the shards."""
    found = [read_shard(folder, number) for number in range(plan.shards)]
    shards = [shard for shard in found if shard is not None]
    if len(shards) < plan.shards:
        raise LatentsError(f"{folder} has {len(shards)} of {plan.shards} shards: encode the rest first")
    sums = [{"file": shard_path(folder, s.number).name, "images": s.images, "sha256": s.sha256} for s in shards]
    labels = np.array([label for shard in shards for label in shard.labels], dtype=np.int64)
    file = io.BytesIO()
    np.save(file, labels, allow_pickle=False)
    content = {"shards": sums, "labels_sha256": hashlib.sha256(file.getvalue()).hexdigest()}
    return {"sha256": _digest(plan, content), **content}, file.getvalue()


def _digest(plan: EncodingPlan, content: Mapping[str, Any]) -> str:
    """Of the index, over all that the latents depend on."""
    meaning = {key: value for key, value in asdict(plan).items() if key != "autoencoder"}
    return hashlib.sha256(canonical_json({"plan": meaning, **content}).encode()).hexdigest()


def read_index(folder: Path) -> Mapping[str, Any]:
    """Of latents that are all there."""
    if not (folder / INDEX).exists():
        state = "encoding is not finished" if (folder / PLAN).exists() else "there is no encoding"
        raise LatentsError(f"{folder} has no {INDEX}: {state}; python -m study.data encode makes it")
    index = read_json(folder / INDEX)
    content = {key: value for key, value in index.items() if key != "sha256"}
    if index.get("sha256") != _digest(read_plan(folder), content):
        raise LatentsError(f"{folder / INDEX} does not list the latents of {PLAN} beside it: one of them was changed")
    return index


def read_labels(folder: Path, count: int, sha256: str) -> np.ndarray:
    """int64 (count,), of the first images; all must have this checksum."""
    labels = open_array(folder / LABELS)
    if sha256_of(folder / LABELS) != sha256:
        raise LatentsError(f"{folder / LABELS} {DAMAGED}")
    if labels.dtype != np.int64 or labels.ndim != 1 or len(labels) < count:
        raise LatentsError(f"{folder / LABELS} is {labels.dtype} {labels.shape}: must be int64, one per image")
    return np.array(labels[:count])


def open_array(path: Path, mode: Literal["r", "c"] = "r") -> np.memmap:
    """Mapped rather than read, from a file that may hold anything."""
    try:
        return np.lib.format.open_memmap(path, mode=mode)
    except Exception as error:  # of a damaged header numpy makes half a dozen kinds
        raise LatentsError(f"{path} cannot be read: {next(iter(str(error).splitlines()), 'damaged')}") from error


def open_shard(folder: Path, plan: EncodingPlan, number: int) -> np.memmap:
    """A memory map of one shard, (n, 2, 2, C, h, w); nothing is read yet."""
    path = shard_path(folder, number)
    array = open_array(path)
    expected = (len(plan.part(number)), 2, 2, plan.channels, *plan.size)
    if array.shape != expected or array.dtype != np.dtype(plan.dtype):
        raise LatentsError(f"{path} is {array.dtype} {array.shape}: must be {plan.dtype} {expected}")
    return array


def damaged(folder: Path) -> Iterator[str]:
    """One line for every file that is not as it was written."""
    plan, index = read_plan(folder), read_index(folder)
    listed = {str(each["file"]): str(each["sha256"]) for each in index["shards"]}
    paths = [shard_path(folder, number) for number in range(plan.shards)]
    for path in [*paths, folder / LABELS]:
        if not path.exists():
            yield f"{path} {MISSING}"
        elif sha256_of(path) != (index["labels_sha256"] if path.name == LABELS else listed.get(path.name)):
            yield f"{path} {DAMAGED}"


def read_json(path: Path) -> dict[str, Any]:
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LatentsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LatentsError(f"{path} is damaged: {error}") from error
    if not isinstance(tree, dict):
        raise LatentsError(f"{path} is damaged: must be a mapping")
    return tree
