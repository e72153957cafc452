"""Files that are whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

guards: dict[Path, Callable[[], object]] = {}
"""By folder: asked before a file below it is replaced, so that who lost the right to write can be stopped."""


def write_file(path: Path, write: Callable[[Path], object], lasting: bool = True) -> None:
    """Let `write` fill a temporary file, then put it in the place of `path` in one step.

    Whoever reads `path`, at any moment and after any crash, sees the old content or the new.
    A failed write leaves the old content and no temporary file. What is not `lasting` is not waited for to
    reach the disk: a power cut, and nothing less, may leave the old content or an empty file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # containers share process ids
    try:
        write(temporary)
        temporary.chmod(path.parent.stat().st_mode & 0o666)  # as readable as the folder: stores are shared
        if lasting:
            sync(temporary)
        for folder, ask in list(guards.items()):
            if folder in path.absolute().parents:
                ask()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        sync(path.parent)


def write_text(path: Path, text: str, lasting: bool = True) -> None:
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), lasting)


def write_json(path: Path, value: Any, lasting: bool = True) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", lasting)


def sync(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def user_cache() -> Path:
    """Where this user keeps what can be made again."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "diffusion-backbone-study"


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
