"""What can happen to a file: bytes flip, lines go or come twice, words become others, branches of a tree move."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from study.strict import ConfigError

SECONDS = 30  # of CPU: what reads on for longer hangs

HOSTILE = Path(tempfile.gettempdir()) / f"executed-{os.getpid()}"
"""A payload that is run makes this folder."""

TOKEN = re.compile(rb"[\w./-]+|[^\w\s]")
WORDS = (
    "", "0", "-1", "1.5", "1e400", "-0", "9" * 30, "2147483648", "true", "no", "null", "~", "nan", ".inf", "[]", "{}",
    "[[[1]]]", "{a: 1}", "''", '"', "'", "[", "}", ":", "-", "---", "...", "\t", "\0", "\ufeff", "é", "&a",
    "*a", "\ud7ff", "!!python/object/apply:os.system", "!!binary", "<<", "seed", "axes", "backbone", "train.lr",
    "backbone.M", "run", "value", "points", "status", "done", "../../..", "/etc/passwd", "2024-01-01", "0x10",
    "1_000", "=", "|", ">", "%", "@",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1e308, 10**30, "", "text", "0", "../x", "\0", [], [None], [[]], {}, {"a": {}}, [1, 2],
)  # fmt: skip


def scaled(count: int) -> Any:
    """`count` examples in the gate, and the profile's multiple of it elsewhere."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=count * settings().max_examples // 100, deadline=None, suppress_health_check=checks)


@st.composite
def bytes_like(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the files after one to four things happened to its text."""
    data = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 4))):
        data = draw(st.sampled_from((_flip, _cut, _lines, _token, _token, _token)))(draw, data)
    return data


def _flip(draw: st.DrawFn, data: bytes) -> bytes:
    if not data:
        return data
    place = draw(st.integers(0, len(data) - 1))
    return data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]


def _cut(draw: st.DrawFn, data: bytes) -> bytes:
    """The end, or a piece, is missing."""
    start = draw(st.integers(0, len(data)))
    stop = draw(st.one_of(st.just(len(data)), st.integers(start, len(data))))
    return data[:start] + data[stop:]


def _lines(draw: st.DrawFn, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    place = draw(st.integers(0, len(lines) - 1))
    other = lines[draw(st.integers(0, len(lines) - 1))]
    new = {"drop": [], "double": [lines[place]] * 2, "swap": [other], "indent": [b"  " + lines[place]]}
    return b"".join(lines[:place] + new[draw(st.sampled_from(sorted(new)))] + lines[place + 1 :])


def _token(draw: st.DrawFn, data: bytes) -> bytes:
    """A word becomes another: of the same file, of a list of bad ones, or any."""
    found = list(TOKEN.finditer(data))
    if not found:
        return data
    old = found[draw(st.integers(0, len(found) - 1))]
    words = st.sampled_from(WORDS).map(lambda word: word.encode("utf-8", "surrogatepass"))
    own = st.sampled_from([match.group() for match in found])
    new = draw(st.one_of(words, own, st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace"))))
    return data[: old.start()] + new + data[old.end() :]


class Payload:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(HOSTILE),))


def places(tree: Any, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield way
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*way, key))


@st.composite
def trees_like(draw: st.DrawFn, originals: Sequence[Any]) -> Any:
    """One of the trees after branches of it became others, went, came twice or got another name."""
    tree = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(tree))
        way = draw(st.sampled_from(ways))
        if not way:
            if draw(st.integers(0, 9)) == 0:
                return copy.deepcopy(draw(st.sampled_from(VALUES)))
            continue
        parent = tree
        for key in way[:-1]:
            parent = parent[key]
        _change(draw, tree, parent, way[-1], ways)
    return tree


def _change(draw: st.DrawFn, tree: Any, parent: Any, key: Any, ways: list[tuple[str | int, ...]]) -> None:
    what = draw(st.sampled_from(("replace", "replace", "drop", "graft", "rename")))
    if what == "drop":
        del parent[key]
    elif what == "graft":
        value = tree
        for step in draw(st.sampled_from(ways)):
            value = value[step]
        parent[key] = copy.deepcopy(value)
    elif what == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(WORDS))] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def write(folder: Path, files: dict[str, bytes]) -> None:
    for file, data in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


@contextmanager
def place(files: dict[str, bytes], written: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """A folder with these files; afterwards it must hold the same, and nothing else but what may be written."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, files)
        yield folder
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert {name: data for name, data in found.items() if not written(name)} == files
        assert not HOSTILE.exists(), "something in a file was executed"


def works_or_refuses(read: Callable[[], object], *refusals: type[Exception]) -> bool:
    """Whether it worked; a refusal says something, in one line unless it is told otherwise, and soon."""
    said = _refusal(read, refusals or (ConfigError,))
    assert said is None or said.strip(), "a refusal must say why"
    return said is None


def _refusal(read: Callable[[], object], refusals: tuple[type[Exception], ...]) -> str | None:
    try:
        with limited():
            read()
    except refusals as error:
        return str(error)
    return None


@contextmanager
def limited() -> Iterator[None]:
    """No reader may use more CPU than this."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still reading after {SECONDS} s of CPU")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
