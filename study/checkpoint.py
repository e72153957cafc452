"""Checkpoints: tensors in safetensors, the rest in JSON, both checksummed; nothing is ever unpickled.

A checkpoint is two files named after its image count. The tensors are written first and the
JSON record, which holds their checksum, last: a checkpoint without its record does not exist.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from study.atomic import canonical_json, remove_leftovers, sha256_of, write_file, write_json

log = logging.getLogger(__name__)

FORMAT = 2
KEPT = 2  # the last one, and the one before it should the last turn out damaged


class DamagedCheckpointError(Exception):
    """A checkpoint that cannot be trusted; the message says why."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the ones before it are untouched."""


@dataclass(frozen=True)
class Checkpoint:
    images: int  # trained on so far
    tensors: dict[str, Tensor]
    facts: dict[str, Any]  # JSON: counters, and what this checkpoint belongs to


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run; `owner` (its id) is written into each and checked on loading."""

    path: Path
    owner: str
    keep_every: int = 0  # images: the first checkpoint at or after every multiple stays; 0: only the last two

    def save(self, checkpoint: Checkpoint) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        tensors, record = self._files(checkpoint.images)
        flat = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        try:
            write_file(tensors, lambda temporary: save_file(flat, temporary))
            content = {
                "format": FORMAT,
                "owner": self.owner,
                "images": checkpoint.images,
                "bytes": tensors.stat().st_size,
                "sha256": sha256_of(tensors),
                "facts": checkpoint.facts,
            }
            write_json(record, {"content": content, "sha256": _digest(content)})
        except (OSError, SafetensorError) as error:
            raise CheckpointWriteError(f"cannot write checkpoint {tensors}: {_reason(error)}") from error
        self._remove_old(newest=checkpoint.images)

    def restore_newest(self, restore: Callable[[Checkpoint], None], device: str = "cpu") -> Checkpoint | None:
        """Hand the newest checkpoint that is whole, and that `restore` does not refuse with ValueError, to it."""
        oldest = min(self.newest_first(), default=0)
        for images in self.newest_first():
            try:
                checkpoint = self.load(images, device)
                restore(checkpoint)
                return checkpoint
            except DamagedCheckpointError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
            except ValueError as error:
                log.warning("checkpoint %s does not fit: %s; falling back", self._files(images)[0], error)
            if images == oldest:
                log.warning("no checkpoint before it: starting over")
        return None

    def clean(self) -> None:
        """Remove what a killed writer left: temporary files, and tensors that never got their record."""
        if not self.path.is_dir():
            return
        remove_leftovers(self.path)
        for tensors in self.path.glob("*.safetensors"):
            if not tensors.with_suffix(".json").exists():
                tensors.unlink()

    def _files(self, images: int) -> tuple[Path, Path]:
        stem = self.path / f"{images:012d}"
        return stem.with_suffix(".safetensors"), stem.with_suffix(".json")

    def newest_first(self) -> Iterator[int]:
        """Image counts of the checkpoints there are, damaged or not."""
        stems = (record.stem for record in self.path.glob("*.json"))
        yield from sorted((int(stem) for stem in stems if stem.isdigit()), reverse=True)

    def newest_facts(self) -> dict[str, Any] | None:
        """Of the newest checkpoint whose record is whole; no tensor is read."""
        for images in self.newest_first():
            with suppress(DamagedCheckpointError):
                return self._owned_record(images)["facts"]
        return None

    def load(self, images: int, device: str = "cpu") -> Checkpoint:
        """One checkpoint, refused with DamagedCheckpointError unless every byte is as written."""
        tensors = self._files(images)[0]
        content = self._owned_record(images)
        try:
            size = tensors.stat().st_size
            if size != content["bytes"]:
                raise DamagedCheckpointError(
                    f"checkpoint {tensors} is truncated: {size} bytes, expected {content['bytes']}"
                )
            if sha256_of(tensors) != content["sha256"]:
                raise DamagedCheckpointError(f"checkpoint {tensors} is damaged: its checksum does not match")
            return Checkpoint(images, load_file(tensors, device=device), content["facts"])
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpointError(f"checkpoint {tensors} cannot be read: {_reason(error)}") from error

    def _owned_record(self, images: int) -> dict[str, Any]:
        record = self._files(images)[1]
        content = self._read_record(record)
        expected = {"format": FORMAT, "owner": self.owner, "images": images}
        for key, value in expected.items():
            if content.get(key) != value:
                raise DamagedCheckpointError(f"checkpoint {record} has {key}={content.get(key)!r}, expected {value!r}")
        for key, kind in {"bytes": int, "sha256": str, "facts": dict}.items():
            if not isinstance(content.get(key), kind):
                raise DamagedCheckpointError(
                    f"checkpoint {record} has {key}={content.get(key)!r}: not a {kind.__name__}"
                )
        return content

    def _read_record(self, record: Path) -> dict[str, Any]:
        try:
            sealed = json.loads(record.read_text(encoding="utf-8"))
            content = dict(sealed["content"])
            whole = sealed["sha256"] == _digest(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"checkpoint {record} cannot be read: {_reason(error)}") from error
        if not whole:
            raise DamagedCheckpointError(f"checkpoint {record} is damaged: its checksum does not match")
        return content

    def _remove_old(self, newest: int) -> None:
        """Keep the last two and one per `keep_every` images; drop ones beyond `newest`, which resuming has undone."""
        older = [images for images in self.newest_first() if images < newest]
        beyond = [images for images in self.newest_first() if images > newest]
        milestones = [images for images, before in pairwise([*older, 0]) if crossed(before, images, self.keep_every)]
        for images in beyond + sorted(set(older[KEPT - 1 :]) - set(milestones)):
            tensors, record = self._files(images)
            record.unlink(missing_ok=True)  # first: without its record a checkpoint does not exist
            tensors.unlink(missing_ok=True)


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` (0: never) lies in (before, now]."""
    return every > 0 and now // every > before // every


def _digest(content: Any) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
