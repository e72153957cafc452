"""Whole runs on miniature folders and databases: killed and resumed to the byte, on two ranks, refused in a line."""

import json
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from study.compose import resolve
from study.data import load
from study.data.streamed import _FILES
from study.results import read_rows
from study.run import main, run
from study.run_directory import Failure, RunDirectory, Status
from tests.study.data import made
from tests.study.killed import start, warm_up
from tests.study.ranked import do_run, together
from tests.study.short_run import SMALL, equal_to, fail_at, finished, what_must_not_differ

KILLS = 3


def words(name: str, path: Path, results: Path) -> list[str]:
    return [*SMALL, f"data={name}", f"data.path={path}", "data.size=8", f"results={results}"]


def folder(tmp_path: Path) -> Path:
    return made.flat(tmp_path / "images")


@pytest.mark.parametrize("name", ["folder", "lsun_church"])
def test_killed_and_resumed_it_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path) if name == "folder" else made.lsun(tmp_path / "lsun")
    config = resolve(words(name, path, tmp_path / "undisturbed"))
    warm_up()
    began = time.monotonic()
    undisturbed = finished(words(name, path, tmp_path / "undisturbed"))
    duration = time.monotonic() - began
    chance, disturbed = random.Random(name), replace(config, results=str(tmp_path / "disturbed"))
    ends = []
    for number in range(KILLS):
        inside_a_write = number % 2 == 0
        process = start(disturbed, die_at_write=chance.randint(5, 20) if inside_a_write else None)
        process.join(None if inside_a_write else chance.uniform(0.2, 0.8) * duration)
        process.kill()
        process.join()
        ends.append(process.exitcode)
    assert ends[0] == -signal.SIGKILL
    assert set(ends) <= {0, -signal.SIGKILL}
    process = start(disturbed)
    process.join()
    assert process.exitcode == 0
    found, expected = what_must_not_differ(RunDirectory.of(disturbed)), what_must_not_differ(undisturbed)
    assert {key: found[key] == expected[key] for key in expected} == dict.fromkeys(expected, True)


@pytest.mark.parametrize("threads", ["1", "5"])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path)
    undisturbed = finished(words("folder", path, tmp_path / "first"))
    monkeypatch.setenv("DATA_THREADS", threads)
    load.cache_clear()
    equal_to(undisturbed, words("folder", path, tmp_path / "second"))


def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    path = folder(tmp_path)
    alone = finished(words("folder", path, tmp_path / "alone"))
    config = resolve(words("folder", path, tmp_path / "two"))
    assert together(2, do_run, config) == [0, 0]
    one, two = (
        [json.loads(line) for line in directory.curve.read_text().splitlines()]
        for directory in (alone, RunDirectory.of(config))
    )
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_rows_say_which_images_they_are_of(tmp_path: Path) -> None:
    directory = finished(words("folder", folder(tmp_path), tmp_path / "results"))
    digests = {row.provenance["train_data"] for row in read_rows(directory.rows)}
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_labels_reach_a_conditional_backbone(tmp_path: Path) -> None:
    path = made.edm_zip(tmp_path / "edm.zip")
    config = resolve(words("zip", path, tmp_path / "results"))
    assert config.backbone.classes == 4
    assert run(config).status is Status.DONE


def test_an_image_that_is_damaged_ends_the_run_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path)
    given = words("folder", path, tmp_path / "results")
    config = resolve(given)
    for file in path.iterdir():  # of the same size, so that the listing is the same
        file.write_bytes(b"\0" * file.stat().st_size)
    assert main(given) == 2  # a held-out image is met first, before anything is written
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert ".png is not an image" in message
    assert not Path(config.results).exists()


def test_an_image_damaged_during_training_is_a_failure_of_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path)

    def damage() -> None:
        for file in path.iterdir():
            file.write_bytes(b"\0" * file.stat().st_size)

    fail_at(monkeypatch, 2, damage)
    state = run(resolve(words("folder", path, tmp_path / "results")))
    assert (state.status, state.failure) == (Status.FAILED, Failure.STORAGE)
    assert state.message is not None
    assert ".png is not an image" in state.message


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    path = folder(tmp_path)
    config = resolve(words("folder", path, tmp_path / "results"))
    made.flat(path, 41)
    load.cache_clear()
    for listing, _ in _FILES.values():  # as a new process would
        listing.cache_clear()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="holds other images"):
        run(config)


def test_moved_images_are_the_same_run(tmp_path: Path) -> None:
    path = folder(tmp_path)
    first = finished(words("folder", path, tmp_path / "results"))
    shutil.move(path, tmp_path / "moved")
    again = RunDirectory.of(resolve(words("folder", tmp_path / "moved", tmp_path / "results")))
    assert again.path == first.path
    assert again.read_state().status is Status.DONE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["data=imagenet"], "data.path=None is not valid: must be where imagenet lies"),
        (["data=folder", "data.path=/nowhere"], "data.path='/nowhere' is not valid: must be a file or folder that"),
        (["data=folder", "data.path={empty}"], "holds no images"),
        (["data=imagenet", "data.path={path}"], "has no class folders such as n01440764"),
        (["data=folder", "data.path={path}", "data.classes=10"], "data.classes=10 is not valid: must be 0"),
        (["data=folder", "data.path={path}"], "is 24 x 20: must be at least data.size=64 either way"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    path = folder(tmp_path)
    given = [word.format(path=path, empty=tmp_path / "empty") for word in asked]
    assert main([*SMALL, *given, f"results={tmp_path / 'results'}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("run ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "results").exists()
