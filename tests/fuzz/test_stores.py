"""A store one of whose files was changed: the commands that look at it tell of it, and hide nothing else."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from study.answer import main as answer
from study.command_line import complain
from study.results_command import main as results
from study.status import main as status
from study.sweep import main as sweep
from tests.fuzz.mutations import as_json, bytes_like, limited, place, scaled, trees_like
from tests.study import fake_runs

SWEEP = """\
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 64}
axes: {train.lr: [0.001, 0.002], seed: [0, 1]}
baseline: {train.lr: 0.001}
"""


@cache
def store() -> dict[str, bytes]:
    """Every file of a finished sweep's store, by path."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        file = Path(name) / "lrs.yaml"
        file.write_text(SWEEP, encoding="utf-8")
        assert sweep([str(file), f"results={name}/r", "launcher=inline"], fake_runs.quick) == 0
        files = [path for path in (Path(name) / "r").rglob("*") if path.is_file() and "plots" not in path.parts]
        return {
            str(path.relative_to(Path(name) / "r")): path.read_bytes() for path in files if path.suffix != ".parquet"
        }


def changeable() -> list[str]:
    return sorted(name for name in store() if name.endswith((".json", ".jsonl", ".yaml")))


@st.composite
def stores(draw: st.DrawFn) -> tuple[str, dict[str, bytes]]:
    name = draw(st.sampled_from(changeable()))
    data = store()[name]
    if name.endswith(".json") and draw(st.booleans()):
        return name, {**store(), name: as_json(draw(trees_like([json.loads(data)])))}
    return name, {**store(), name: draw(bytes_like([data]))}


COMMANDS = {
    "status": lambda folder: status(["lrs", "--results", folder]),
    "status --json": lambda folder: status(["--json", "--results", folder]),
    "verify": lambda folder: results(["--results", folder, "verify"]),
    "answer --json": lambda folder: answer(["lrs", "--json", "--results", folder]),
}


@scaled(15)
@given(stores(), st.sampled_from(sorted(COMMANDS)))
def test_no_command_shows_a_traceback(changed: tuple[str, dict[str, bytes]], command: str) -> None:
    _, files = changed
    out, err = io.StringIO(), io.StringIO()
    heard = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with place(files, lambda path: path.startswith(".index")) as folder, heard[0], heard[1], limited():
        code = COMMANDS[command](str(folder))
    assert code in (0, 1, 2)
    assert "Traceback" not in out.getvalue() + err.getvalue()
    if code == 2:
        assert err.getvalue().startswith("error: ")
        assert out.getvalue() == ""


def test_what_is_not_changed_is_whole() -> None:
    with place(store(), lambda path: path.startswith(".index")) as folder, contextlib.redirect_stdout(io.StringIO()):
        assert [command(str(folder)) for command in COMMANDS.values()] == [0, 0, 0, 0]


def test_a_refusal_without_words_still_says_something() -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        complain(ValueError())
    assert err.getvalue() == "error: ValueError\n"
