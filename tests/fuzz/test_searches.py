"""What a search remembers, changed: the same command goes on from it or refuses it in one line, and loses nothing."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from study.search.storage import JOURNAL
from study.sweep import main as sweep
from tests.fuzz.mutations import HOSTILE, as_json, bytes_like, limited, scaled, trees_like, write
from tests.study.search.fake_objectives import bowl_run

SWEEP = b"""\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 64}
axes:
  train.lr: loguniform(1e-4, 1e-1)
  train.weight_decay: uniform(0, 1)
search: {trials: 3, sampler: random}
launcher: inline
"""
FILE, KEPT = "rates.yaml", f"r/rates/{JOURNAL}"


def called(folder: Path) -> tuple[int, str, str]:
    """Exit code, and what is said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        code = sweep([str(folder / FILE), f"results={folder}/r"], bowl_run)
    return code, out.getvalue(), err.getvalue()


@cache
def whole() -> dict[str, bytes]:
    """Every file of a finished search, by path."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / FILE).write_bytes(SWEEP)
        assert called(Path(name))[0] == 0
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(name)): path.read_bytes() for path in files if path.suffix != ".parquet"}


@st.composite
def journals(draw: st.DrawFn) -> bytes:
    lines = whole()[KEPT].splitlines(keepends=True)
    if draw(st.booleans()):
        return draw(bytes_like([whole()[KEPT]]))
    number = draw(st.integers(0, len(lines) - 1))
    lines[number] = as_json(draw(trees_like([json.loads(lines[number])]))) + b"\n"
    return b"".join(lines)


def goes_on(data: bytes) -> None:
    before = {**whole(), KEPT: data}
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), before)
        code, out, err = called(Path(name))
        after = {path: (Path(name) / path).read_bytes() for path in before}
    assert not HOSTILE.exists()
    assert after.pop(KEPT).startswith(data[: data.rfind(b"\n") + 1])
    assert code in (0, 1, 2)
    assert "Traceback" not in out + err
    if code == 2:
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    for path in after:
        assert after[path] == before[path] or (code != 2 and not path.startswith("r/runs/")), path


@scaled(12)
@given(journals())
def test_journals(data: bytes) -> None:
    goes_on(data)


def test_what_is_not_changed_is_finished() -> None:
    goes_on(whole()[KEPT])
