"""A copy of the code beside the records: jobs run what was there when they were submitted, whatever happens since."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from study.atomic import write_json
from study.provenance import SNAPSHOT, git_state

PACKAGES = ("models", "study")
FLOOR = Path(__file__).parents[2]  # where the packages are


def snapshot(folder: Path) -> Path:
    """`folder/code-<hash>/` with the packages as they are now; an equal one is used again."""
    files = sorted(path for package in PACKAGES for path in _files(FLOOR / package))
    digest = hashlib.sha256(str(git_state()).encode())
    for path in files:
        digest.update(str(path.relative_to(FLOOR)).encode() + b"\0" + path.read_bytes())
    target = folder / f"code-{digest.hexdigest()[:12]}"
    if target.exists():
        return target
    aside = folder / f".code.{uuid.uuid4().hex}.tmp"
    try:
        for path in files:
            copy = aside / path.relative_to(FLOOR)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        write_json(aside / SNAPSHOT, git_state())
        with suppress(FileExistsError):  # somebody else was faster
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _files(package: Path) -> list[Path]:
    return [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
