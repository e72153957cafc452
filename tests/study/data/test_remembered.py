"""A list that is remembered is the list that would be made now, or it is made again."""

import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.data import remembered as module
from study.data.archives import shards_place, zip_place
from study.data.celeba import celeba_place
from study.data.check import check
from study.data.databases import lmdb_place
from study.data.decode import DamagedImageError
from study.data.folders import folder_place
from study.data.imagenet import imagenet_place
from study.data.listing import Listing, Place, in_order
from study.data.remembered import file_of, forget, remembered
from tests.study.data import made

FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Place]]] = {
    "imagenet": (lambda folder: made.imagenet(folder / "set"), imagenet_place),
    "folder": (lambda folder: made.flat(folder / "set"), folder_place),
    "zip": (lambda folder: made.edm_zip(folder / "set.zip"), zip_place),
    "webdataset": (lambda folder: made.webdataset(folder / "set"), shards_place),
    "lmdb": (lambda folder: made.lsun(folder / "set") / "church_outdoor_train_lmdb", lmdb_place),
    "celeba": (lambda folder: made.celeba(folder / "set"), celeba_place),
}


@pytest.fixture(autouse=True)
def _remember_short_lists_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FEWEST", 1)
    monkeypatch.setattr(module, "SETTLED", -1.0)  # files made a moment ago count as old


def equal(one: Listing, other: Listing) -> bool:
    names = [field.name for field in fields(Listing) if field.name != "reader"]
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(
        np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs for mine, theirs in pairs
    )


def never_listed(place: Place) -> Place:
    def entries() -> Any:
        raise AssertionError("it was listed again")

    return Place(place.path, entries, place.read, place.files, place.visited)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_remembered_is_what_was_listed(name: str, tmp_path: Path) -> None:
    make, locate = FORMATS[name]
    path = make(tmp_path)
    first = remembered(name, path, locate(path))
    again = remembered(name, path, never_listed(locate(path)))
    assert equal(first, again)
    assert equal(first, in_order(locate(path)))
    assert all(first.read(number) == again.read(number) for number in range(len(first)))


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda path: (path / "train/n01440764/new.JPEG").write_bytes(made.jpeg(77)),
    "removed": lambda path: (path / "train/n01440764/n01440764_0.JPEG").unlink(),
    "renamed": lambda path: (path / "val/n01440764").rename(path / "val/n02084071/inner"),
    "a class more": lambda path: made.write(path, {"train/n99999999/1.JPEG": made.jpeg(1)}),
    "replaced": lambda path: made.write(path, {".t": b""}) and replace(path / "train/n01440764/n01440764_0.JPEG"),
}


def replace(file: Path) -> None:
    """As careful programs write: beside it, then renamed."""
    beside = file.with_suffix(".part")
    beside.write_bytes(made.jpeg(88, 50, 50))
    beside.rename(file)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_listed_again(change: str, tmp_path: Path) -> None:
    path = made.imagenet(tmp_path / "set")
    first = remembered("imagenet", path, imagenet_place(path))
    time.sleep(0.02)  # a folder's time has its file system's grain
    CHANGES[change](path)
    again = remembered("imagenet", path, imagenet_place(path))
    assert equal(again, in_order(imagenet_place(path)))
    assert again.digest != first.digest


@pytest.mark.parametrize(
    ("name", "make", "locate", "empty"),
    [
        ("imagenet", made.imagenet, imagenet_place, "train/n99999999"),
        ("imagenet", made.imagenet, imagenet_place, "val/n02084071/deeper"),
        ("folder", lambda path: made.write(path, {"a/1.png": made.jpeg(1)}), folder_place, "b"),
        ("celeba", made.celeba, celeba_place, "img_align_celeba/more"),
    ],
)
def test_a_folder_that_was_empty_and_is_filled_is_listed_again(
    name: str, make: Callable[[Path], Path], locate: Callable[[Path], Place], empty: str, tmp_path: Path
) -> None:
    path = tmp_path / "set"
    make(path)
    (path / empty).mkdir(parents=True)
    first = remembered(name, path, locate(path))
    assert equal(remembered(name, path, never_listed(locate(path))), first)
    time.sleep(0.02)  # a folder's time has its file system's grain
    if name == "celeba":  # every image needs its line; without the partition none does
        next(path.rglob("list_eval_partition.txt")).unlink()
        first = remembered(name, path, locate(path))
    before = os.stat(path / empty)
    (path / empty / "new.jpg").write_bytes(made.jpeg(77))
    os.utime(path / empty, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and tar do
    again = remembered(name, path, locate(path))
    assert len(again) == len(first) + 1
    assert equal(again, in_order(locate(path)))


@pytest.mark.parametrize("name", ["zip", "webdataset"])
def test_a_changed_archive_is_listed_again(name: str, tmp_path: Path) -> None:
    make, locate = FORMATS[name]
    path = make(tmp_path)
    first = remembered(name, path, locate(path))
    if name == "zip":
        made.edm_zip(path, 30)
    else:
        made.shard(path / "train-000009.tar", {"a.jpg": made.jpeg(5), "a.cls": b"1"})
    again = remembered(name, path, locate(path))
    assert len(again) != len(first)
    assert equal(again, in_order(locate(path)))


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"no archive", None])
def test_a_damaged_memory_is_no_memory(damage: bytes | None, tmp_path: Path) -> None:
    path = made.flat(tmp_path / "set")
    first = remembered("folder", path, folder_place(path))
    file = file_of("folder", path)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert equal(remembered("folder", path, folder_place(path)), first)
    assert equal(remembered("folder", path, never_listed(folder_place(path))), first)  # and written anew


def test_recent_changes_and_short_lists_are_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.flat(tmp_path / "set")
    monkeypatch.setattr(module, "SETTLED", 2.0)
    remembered("folder", path, folder_place(path))
    assert not file_of("folder", path).exists()
    monkeypatch.setattr(module, "SETTLED", -1.0)
    monkeypatch.setattr(module, "FEWEST", 41)
    remembered("folder", path, folder_place(path))
    assert not file_of("folder", path).exists()


def test_without_a_place_to_remember_it_is_listed_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/below"))
    path = made.flat(tmp_path / "set")
    assert len(remembered("folder", path, folder_place(path))) == 40


def test_check_looks_again(tmp_path: Path) -> None:
    """In place, under its old name, though with another size: the one change that a memory does not see."""
    path = made.flat(tmp_path / "set")
    before = remembered("folder", path, folder_place(path))
    file = path / "00003.png"
    file.write_bytes(made.encoded(made.picture(99, 30, 30)))
    assert equal(remembered("folder", path, folder_place(path)), before)
    lines, wrong = check(path, size=16)
    assert not wrong
    assert not any(before.digest in line for line in lines)
    forget("folder", path)
    assert remembered("folder", path, folder_place(path)).digest != before.digest


def test_a_file_gone_since_is_named(tmp_path: Path) -> None:
    path = made.flat(tmp_path / "set")
    listing = remembered("folder", path, folder_place(path))
    os.unlink(path / "00007.png")
    with pytest.raises(DamagedImageError, match=r"set: 00007\.png cannot be read: No such file"):
        listing.read(7)
