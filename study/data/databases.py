"""Images in LMDB, as LSUN is distributed: an image file's bytes under a key each, no labels."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from study.data.listing import Entry, Place

if TYPE_CHECKING:  # an optional dependency, imported when a database is opened
    import lmdb

DATA = "data.mdb"


def lmdb_place(path: Path) -> Place:
    if not (path / DATA).is_file():
        raise ValueError(f"path={str(path)!r} is not valid: must be a folder with {DATA}")
    database = opened(str(path.resolve()))

    def entries() -> list[Entry]:
        with database.begin(buffers=True) as transaction, transaction.cursor() as cursor:
            return [Entry(_name_of(bytes(key)), len(value)) for key, value in cursor]

    def read(name: str, size: int, place: list[int]) -> bytes:
        with database.begin() as transaction:
            content = transaction.get(_key_of(name))
        if content is None:
            raise ValueError("it is no longer in the database")
        return content

    return Place(path, entries, read, (path / DATA,))


@cache  # one process must not open the same database twice
def opened(path: str) -> lmdb.Environment:
    try:
        import lmdb
    except ImportError as error:
        raise ValueError("reading LMDB needs the package lmdb: pip install 'diffusion-backbone-study[lmdb]'") from error
    try:
        database = lmdb.open(path, readonly=True, lock=False, readahead=False, meminit=False, create=False)
        pages, page = database.info()["last_pgno"] + 1, database.stat()["psize"]
    except lmdb.Error as error:
        raise ValueError(f"path={path!r} is not valid: is no LMDB database ({error})") from error
    size = (Path(path) / DATA).stat().st_size
    if size < pages * page:  # reading beyond its end would kill the process
        raise ValueError(f"{path}/{DATA} is cut off: it has {size:,} bytes of {pages * page:,}")
    return database


def _name_of(key: bytes) -> str:
    """Any bytes may be a key."""
    return key.decode("utf-8", "surrogateescape")


def _key_of(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
