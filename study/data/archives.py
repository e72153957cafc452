"""Images inside zip and tar files, read at random from where they lie; nothing is ever unpacked to disk."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from study.data.folders import APART, LABELS, TRAIN
from study.data.listing import LARGEST, Entry, Place, Read, is_image, labels_by_name, read_tree, shown

LOCAL_HEADER = struct.Struct("<4s22xHH")  # a zip member's own header: signature, lengths of its name and extra field
SIGNATURE = b"PK\x03\x04"
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LABEL_SUFFIXES = (".cls", ".json")
MOST_OPEN = 256  # archives; a process may have 1,024 files open
SMALL = 1 << 24  # bytes of a label: more is none


def zip_place(path: Path) -> Place:
    """Any zip of images, such as EDM's; labels from its `dataset.json` alone, as folders in it mean nothing there."""
    if not path.is_file():
        raise ValueError(f"path={str(path)!r} is not valid: must be a zip file")
    return Place(path, lambda: zip_entries(path), zip_reader(path), (path,))


def zip_entries(path: Path) -> list[Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            known = _zip_labels(archive, path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"path={str(path)!r} is not valid: is no whole zip file ({error})") from error
    entries = [_zip_entry(path, member, known) for member in members if is_image(member.filename)]
    return _distinct(path, entries)


def _zip_entry(path: Path, member: zipfile.ZipInfo, known: dict[str, int] | None) -> Entry:
    name = member.filename
    if member.flag_bits & 1:
        raise ValueError(f"{path}: {shown(name)} is encrypted")
    if member.compress_type not in METHODS:
        raise ValueError(
            f"{path}: {shown(name)} is packed by method {member.compress_type}: must be stored or deflated"
        )
    if known is not None and name not in known:
        raise ValueError(f"{path}: {LABELS} has no label for {shown(name)}")
    place = (member.header_offset, member.compress_size, member.compress_type, member.CRC)
    return Entry(name, member.file_size, place, None if known is None else known[name])


def _zip_labels(archive: zipfile.ZipFile, path: Path) -> dict[str, int] | None:
    if LABELS not in archive.namelist():
        return None
    where = f"{path}: {LABELS}"
    if archive.getinfo(LABELS).file_size > LARGEST:
        raise ValueError(f"{where} is too large to be a list of labels")
    known = labels_by_name(where, archive.read(LABELS))
    return None if known is None else dict(known)


def zip_reader(path: Path) -> Read:
    file = archive_at(path)

    def read(name: str, size: int, place: list[int]) -> bytes:
        offset, packed, method, checksum = place
        signature, name_length, extra_length = LOCAL_HEADER.unpack(read_at(file, LOCAL_HEADER.size, offset))
        if signature != SIGNATURE:
            raise ValueError("the archive has no member there")
        content = read_at(file, packed, offset + LOCAL_HEADER.size + name_length + extra_length)
        if method == zipfile.ZIP_DEFLATED:
            content = inflated(content, size)
        if len(content) != size or zlib.crc32(content) != checksum:
            raise ValueError("its checksum does not fit")
        return content

    return read


def inflated(content: bytes, size: int) -> bytes:
    """No more than the `size` bytes that the archive's own list promises, whatever is packed there."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error


Archive: TypeAlias = tuple[str, int, int]
"""(path, inode, when it changed): another file under the same name is another archive"""


def archive_at(path: Path) -> Archive:
    status = path.stat()
    return (str(path), status.st_ino, status.st_mtime_ns)


class _Opened:
    """Closed when nobody reads from it any more, and it is no longer remembered."""

    def __init__(self, archive: Archive) -> None:
        self.number = os.open(archive[0], os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):  # it could not be opened
            os.close(self.number)


_opened = lru_cache(maxsize=MOST_OPEN)(_Opened)


def read_at(archive: Archive, size: int, offset: int) -> bytes:
    """Threads share a descriptor: reading at an offset moves nothing."""
    opened = _opened(archive)
    content = os.pread(opened.number, size, offset)
    if len(content) != size:
        raise ValueError("the archive ends before it does")
    return content


def shards_place(path: Path) -> Place:
    """WebDataset: tar files whose members belong together by the name before the first dot, an image and its label."""
    train, apart = shards_of(path)
    shards = [*train, *apart]
    if not shards:
        raise ValueError(f"path={str(path)!r} is not valid: must be a .tar file or a folder of them")
    root = path if path.is_dir() else path.parent
    files = [archive_at(shard) for shard in shards]

    def entries() -> Iterator[Entry]:
        for number, shard in enumerate(shards):
            yield from shard_entries(root, shard, number, is_apart=number >= len(train))

    def read(name: str, size: int, place: list[int]) -> bytes:
        return read_at(files[place[0]], size, place[1])

    return Place(path, entries, read, tuple(shards))


def shards_of(path: Path) -> tuple[list[Path], list[Path]]:
    """Those trained on, and those kept apart: in folders `train` and `val`, or named so."""
    if path.is_file():
        return ([path] if path.suffix == ".tar" else []), []
    packed = next(iter(sorted([*path.rglob("*.tar.gz"), *path.rglob("*.tgz")])), None)
    if packed is not None:
        raise ValueError(f"{packed} is compressed, and cannot be read at random: gunzip it")
    shards = sorted(path.rglob("*.tar"))
    apart = [shard for shard in shards if _part_of(shard.relative_to(path)) in APART]
    train = [shard for shard in shards if shard not in set(apart)]
    named = [shard for shard in train if _part_of(shard.relative_to(path)) == TRAIN]
    return (named or train, apart) if train else (apart, [])


def _part_of(shard: Path) -> str:
    """`val` of val/0001.tar, of val-0001.tar and of imagenet_val_0001.tar."""
    words = "/".join(shard.parts).removesuffix(".tar").replace("-", "/").replace("_", "/").split("/")
    return next((word for word in words if word in (TRAIN, *APART)), "")


def shard_entries(root: Path, shard: Path, number: int, is_apart: bool) -> list[Entry]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        for member, content in _members(shard):
            key, suffix = _key_of(member.name)
            if content is not None:
                label = _label_in(suffix, content, f"{shard}: {shown(member.name)}")
                labels |= {} if label is None else {key: label}
            elif key in images:
                raise ValueError(f"{shard}: {shown(key)} has two images")
            else:
                images[key] = member
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"{shard} is no whole tar file: {error}") from error
    where = str(PurePosixPath(shard.relative_to(root)))
    return [
        Entry(f"{where}/{member.name}", member.size, (number, member.offset_data), labels.get(key), is_apart)
        for key, member in images.items()
    ]


def _members(shard: Path) -> Iterator[tuple[tarfile.TarInfo, bytes | None]]:
    """Every image, and every label with its content."""
    length = shard.stat().st_size
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            image, label = is_image(member.name), PurePosixPath(member.name).suffix.lower() in LABEL_SUFFIXES
            if not (image or label) or member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{shard}: {shown(member.name)} is a link or device: must be a file")
            if member.offset_data + member.size > length:
                raise ValueError(f"{shard} ends within {shown(member.name)}")
            if image:
                yield member, None
            elif member.size <= SMALL:
                file = archive.extractfile(member)
                yield member, file.read() if file else b""


def _key_of(name: str) -> tuple[str, str]:
    """(what image and label share, suffix): a/b.seg.png -> (a/b, .png)"""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0]), path.suffix.lower()


def _label_in(suffix: str, content: bytes, where: str) -> int | None:
    """A `.cls` holds a number; a `.json` may hold one as `label`, among other things."""
    try:
        if suffix == ".cls":
            return int(content)
    except ValueError as error:
        raise ValueError(f"{where} is no class: must be a whole number") from error
    tree = read_tree(where, content)
    label = tree.get("label") if isinstance(tree, dict) else None
    return label if type(label) is int else None


def _distinct(path: Path, entries: list[Entry]) -> list[Entry]:
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise ValueError(f"{path}: {shown(entry.name)} is there twice")
        names.add(entry.name)
    return entries
