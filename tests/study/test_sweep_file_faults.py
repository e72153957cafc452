"""Sweep files that are wrong: one line each, naming the place; nothing launched, nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from study.sweep import main

GOOD = """\
# Which?
defaults: [backbone: diffussm-tiny, data: digits8, train: quick, sample: none]
overrides: {train.images: 640}
axes:
  backbone.M: [1, 2, 4]
  seed: [0, 1]
baseline: {backbone.M: 1}
"""
HEAD = "defaults: [backbone: diffussm-tiny]\n"


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


FAULTS: dict[str, tuple[str, str]] = {
    "unknown key": (GOOD + "basline: 1\n", r":8: unknown key basline: did you mean baseline"),
    "search with a baseline": (GOOD + "search: {trials: 3}\n", r":7: baseline: does not go with search"),
    "no axes": (HEAD, r"no axes"),
    "empty file": ("", r"is empty"),
    "only a comment": ("# nothing\n", r"is empty"),
    "a list": ("- 1\n", r":1: must be a mapping"),
    "a word": ("sweep\n", r":1: must be a mapping"),
    "tab": ("axes:\n\tseed: [0]\n", r":2: not YAML: .*tab"),
    "unclosed": ("axes: {seed: [0, 1}\n", r":1: not YAML"),
    "undefined anchor": ("axes: {seed: *seeds}\n", r":1: not YAML: found undefined alias"),
    "recursive anchor": ("axes:\n  seed: &a [0, *a]\n", r":2: the anchor here contains itself"),
    "recursive mapping": ("axes: &a\n  seed: *a\n", r":1: the anchor here contains itself"),
    "merge key": ("x: &x {seed: [0]}\naxes:\n  <<: *x\n", r":1: unknown key x"),
    "python tag": ("axes: !!python/object:os.system {seed: [0]}\n", r":1: the tag .* is not supported"),
    "two documents": ("axes: {seed: [0]}\n---\naxes: {seed: [1]}\n", r":2: not YAML: but found another document"),
    "duplicate key": (GOOD + "axes: {seed: [0]}\n", r":8: axes is given twice, first in line 4"),
    "duplicate axis": (changed("  seed: [0, 1]", "  seed: [0, 1]\n  seed: [2]"), r":7: axes.seed is given twice"),
    "number as key": ("1: 2\naxes: {seed: [0]}\n", r":1: a key must be text"),
    "empty axis": (changed("[1, 2, 4]", "[]"), r":5: axis backbone.M is empty"),
    "axis of one word": (changed("[1, 2, 4]", "1"), r":5: axis backbone.M=1 is not valid: must be a list"),
    "axis without value": (changed("[1, 2, 4]", ""), r":5: axis backbone.M=None is not valid"),
    "nested axis": (changed("  seed: [0, 1]", "  train: {lr: [1e-3]}"), r":6: axis train: must be a list"),
    "mapping as value": (changed("[1, 2, 4]", "[{a: 1}]"), r":5: axis backbone.M: a value cannot be a mapping"),
    "value twice": (changed("[1, 2, 4]", "[1, 2, 1.0]"), r":5: axis backbone.M has 1 twice"),
    "axis of no field": (changed("backbone.M: [1, 2, 4]", "backbone.N: [1]").replace("baseline: {backbone.M: 1}", ""),
                         r":5: axis backbone.N names no field: did you mean backbone\.\w+"),
    "axis without section": (changed("seed: [0, 1]", "lr: [1e-3]"), r":6: axis lr names no field: did you mean"),
    "axis without meaning": (changed("seed: [0, 1]", "machine.threads: [1, 2]"), r":6: axis machine.threads changes"),
    "wrong type": (changed("seed: [0, 1]", "seed: [0, one]"), r":6: seed='one' is not valid: must be an integer"),
    "half a seed": (changed("seed: [0, 1]", "seed: [0.5]"), r":6: seed=0.5 is not valid: must be an integer"),
    "boolean for number": (changed("seed: [0, 1]", "train.batch: [true]"), r":6: train.batch=True is not valid"),
    "impossible point": (changed("[1, 2, 4]", "[1, 3]"), r":5: .*M=3 is not valid.* \[2 of 4 points: \(M=3 seed=0\)"),
    "unknown preset": (changed("digits8", "digits9"), r":2: defaults: data=digits9 is not a preset: did you"),
    "unknown group": (changed("data: digits8", "dats: digits8"), r":2: defaults: unknown key dats: did you mean data"),
    "preset axis typo": (changed("seed: [0, 1]", "data: [digits8, glyp16]"), r":6: axis data: glyp16 is not a preset"),
    "defaults of words": (changed("[backbone: diffussm-tiny,", "[diffussm-tiny,"), r":2: defaults: an entry must be"),
    "default twice": (changed("data: digits8", "backbone: dit-tiny"), r":2: defaults: backbone is given twice"),
    "default of a list": (changed("data: digits8", "data: [1]"), r":2: defaults: data must name a preset"),
    "override typo": (changed("train.images", "train.imags"), r":3: unknown key train.imags: did you mean"),
    "override value": (changed("640", "-640"), r":3: train.images=-640 is not valid.*\[every point\]"),
    "override nested": (changed("{train.images: 640}", "{train: {images: 640}}"), r":3: overrides: write train.images"),
    "override of a group": (changed("{train.images: 640}", "{train: quick}"), r":3: overrides: train is a group"),
    "override and axis": (changed("train.images: 640", "seed: 1"), r":3: seed is both an override and an axis"),
    "baseline off axis": (changed("baseline: {backbone.M: 1}", "baseline: {backbone.P: 1}"),
                          r":7: baseline: backbone.P is not an axis: did you mean backbone.M"),
    "baseline off grid": (changed("baseline: {backbone.M: 1}", "baseline: {backbone.M: 3}"),
                          r":7: baseline: backbone.M=3 matches no point; the axis has 1, 2, 4"),
    "baseline excluded": (GOOD + "exclude: [{backbone.M: 1}]\n", r":7: baseline: matches no point that"),
    "all excluded": (GOOD + "exclude: [{seed: [0, 1]}]\n", r"where: and exclude: leave no point"),
    "where off axis": (GOOD + "where: [{backbone.P: 1}]\n", r":8: where: backbone.P is not an axis"),
    "uneven zip": (GOOD + "zip: [{train.lr: [1e-3, 2e-3], train.batch: [1]}]\n", r":8: zip: axes that move together"),
    "zip of one": (GOOD + "zip: [{train.lr: [1e-3, 2e-3]}]\n", r":8: zip: a group needs two axes"),
    "zip and axis": (GOOD + "zip: [{seed: [2, 3], train.batch: [1, 2]}]\n", r": axis seed is given twice"),
    "zip twice": (GOOD + "zip: [{train.lr: [1e-3, 1e-3], train.batch: [1, 1]}]\n", r":8: zip: entry 2 of .*twice"),
    "same run twice": (changed("seed: [0, 1]", "sample.count: [0, 0.0]"), r":6: axis sample.count has 0 twice"),
    "launcher": (GOOD + "launcher: slurp\n", r":8: launcher='slurp' is not valid"),
    "launcher key": (GOOD + "launcher: {name: local, worker: 2}\n", r":8: unknown key launcher.worker: did you mean"),
    "launcher value": (GOOD + "launcher: {workers: -1}\n", r":8: launcher.workers=-1 is not valid"),
    "match unknown": (GOOD + "match: {like: dit-tini}\n", r":8: match: like='dit-tini' is not a backbone"),
    "match unit": (GOOD + "match: {flops: 3}\n", r":8: match: .*flops"),
    "match unreachable": (changed("[1, 2, 4]", "[1]") + "match: {gmacs: 1e9}\n", r":8: match: gmacs=.* cannot be met"),
    "match of an axis": (GOOD + "match: {like: baseline, free: [M]}\n", r":8: match: backbone.M is an axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_one_line_that_names_the_place(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = FAULTS[name]
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    assert main([str(file), f"results={tmp_path / 'results'}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert err.startswith(f"error: {file}")
    assert not (tmp_path / "results").exists()


def test_all_bad_points_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(changed("[1, 2, 4]", "[1, 3, 5]").replace("seed: [0, 1]", "seed: [0, -1]"), encoding="utf-8")
    assert main([str(file)]) == 2
    err = capsys.readouterr().err
    assert [re.search(r"bad.yaml:(\d+)", line)[1] for line in err.splitlines()] == ["6", "5", "5"]  # type: ignore[index]


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    named_runs = tmp_path / "runs.yaml"
    named_runs.write_text(GOOD, encoding="utf-8")
    for file, message in (
        (tmp_path / "absent.yaml", "absent.yaml cannot be read: No such file"),
        (tmp_path, "cannot be read: Is a directory"),
        (binary, "is not a text file"),
        (named_runs, "a sweep cannot be called 'runs'"),
    ):
        assert main([str(file)]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.lr=[", "is not an override"),
        ("seed=0,1", "an axis is written 'axes.seed="),
        ("axes.seed=[]", "command line: axis seed is empty"),
        ("train.lrr=1", "command line: unknown key train.lrr: did you mean train.lr"),
        ("launcher=slurp", "command line: launcher='slurp'"),
        ("~zip", "deletes what is not there"),
        ("backbone=dit-tine", "command line: defaults: backbone=dit-tine is not a preset: did you mean dit-tiny"),
        ("--retry=tired", "--retry tired is not a class of failures"),
        ("--max-failures=-1", "--max-failures -1 is not valid"),
    ],
)
def test_bad_words(word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    assert main([str(file), word, f"results={tmp_path / 'results'}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_results_that_cannot_be_written_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder's place, and a disk that fills up half way."""
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    (tmp_path / "taken").write_text("", encoding="utf-8")
    assert main([str(file), f"results={tmp_path / 'taken'}"]) == 2
    assert "is not writable" in capsys.readouterr().err
    import study.execute

    real, calls = study.execute.write_text, 0

    def full(path: Path, text: str, lasting: bool = True) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(28, "No space left on device")
        real(path, text, lasting)

    monkeypatch.setattr(study.execute, "write_text", full)
    assert main([str(file), f"results={tmp_path / 'results'}"]) == 2
    assert "cannot be written to: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
