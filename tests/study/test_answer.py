"""What a sweep ends with when something is not there: every hole has its reason, and the table is always printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import study.answer
from study.answer import answer
from study.answer import main as answer_main
from study.comparison import Estimate
from study.run_directory import RunDirectory, load_config
from study.sweep import main
from study.unscored import write_unscored
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file

TEXT = SWEEP.replace("[0, 1, 2, 3, 4, 5]", "[0, 1]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store under a name that needs care: letters beyond ASCII, and blanks."""
    folder = tmp_path_factory.mktemp("größe und mehr")
    file, results = sweep_file(folder, TEXT, "größe M"), folder / "Anna's [neue] Ergebnisse"
    assert main([str(file), f"results={results}", "launcher=inline"], fake_runs.quick) == 0
    return results


@pytest.fixture
def results(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / finished.name))


def run_of(results: Path, lr: float, seed: int) -> RunDirectory:
    for path in (results / "runs").iterdir():
        config = load_config(path / "config.yaml")
        if (config.train.lr, config.seed) == (lr, seed):
            return RunDirectory(results, path.name)
    raise AssertionError


def line(text: str, start: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(start))
    return found


def test_a_sweep_may_have_any_name_that_a_folder_can(finished: Path) -> None:
    assert (finished / "größe M" / "plots" / "val_loss.png").stat().st_size > 1000
    assert line((finished / "größe M" / "answer.txt").read_text(encoding="utf-8"), "val_loss").endswith("baseline")


def test_a_metric_without_value_has_its_reason(results: Path) -> None:
    for seed in (0, 1):
        write_unscored(run_of(results, 0.001, seed).unscored, {"fid@100": "no weights", "is@100": "no weights"})
    assert "fid@100, is@100: n/a in 2 of 4 runs: no weights" in answer(results / "größe M").splitlines()


def test_damaged_rows_of_one_run_are_told_of_that_run_alone(results: Path) -> None:
    damaged = run_of(results, 0.002, 1)
    damaged.rows.write_text('{"run": "half a li', encoding="utf-8")
    text = answer(results / "größe M")
    (told,) = (line for line in text.splitlines() if line.startswith("missing: "))
    assert told.startswith("missing: lr=0.002 seed=1: ")
    assert "damaged" in told
    assert damaged.identity in told
    assert line(text, "val_loss").split()[2] == "2/2"
    assert text.splitlines()[text.splitlines().index(line(text, "val_loss")) + 1].split()[1] == "1/2"


def test_points_whose_baseline_has_no_value_say_so(results: Path) -> None:
    for seed in (0, 1):
        run_of(results, 0.001, seed).rows.unlink()
    text = answer(results / "größe M")
    assert text.count("missing: lr=0.001 seed=") == 2
    assert text.count("done, but its rows are gone") == 2
    assert text.count("no value of lr=0.001 to compare with") == 2  # of val_loss and of fd


@pytest.mark.parametrize("taken", ["plots", "answer.csv"])
def test_a_folder_that_cannot_be_written_costs_no_table(taken: str, results: Path) -> None:
    folder = results / "größe M"
    before = line(answer(folder), "val_loss")
    if taken == "plots":
        shutil.rmtree(folder / taken)
        (folder / taken).write_text("in the way", encoding="utf-8")
    else:
        (folder / taken).unlink()
        (folder / taken).mkdir()
    text = answer(folder)
    assert line(text, "val_loss") == before
    assert text.splitlines()[-1].startswith(f"{folder}: the table and the plots could not be written: ")


def test_a_store_behind_a_link_and_from_elsewhere(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command through a link, relative to another working folder, finds everything done."""
    (tmp_path / "link").symlink_to(results)
    (tmp_path / "sub").mkdir()
    file = sweep_file(tmp_path, TEXT, "größe M")
    monkeypatch.chdir(tmp_path / "sub")
    for given in (Path("..") / file.name, file):
        assert main([str(given), "results=../link", "launcher=inline"], fake_runs.failing) == 0
        assert "4 runs: 4 done" in capsys.readouterr().out
    assert answer_main(["../link/größe M"]) == 0
    assert "lr=0.002" in capsys.readouterr().out


@pytest.mark.parametrize("name", [".hidden", "-dashed", "two\nlines", "tab\tbed"])
def test_names_that_make_no_good_folder_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, TEXT, name)
    assert main([str(file), f"results={tmp_path / 'r'}"], fake_runs.quick) == 2
    assert f"a sweep cannot be called {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_cluster_takes_plain_names_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, TEXT, "größe M")
    assert main([str(file), f"results={tmp_path / 'r'}", "launcher=slurm", "--plan"], fake_runs.quick) == 2
    assert "a sweep on a cluster cannot be called 'größe M'" in capsys.readouterr().err


def test_nothing_is_told_as_nothing() -> None:
    assert study.answer._difference(Estimate(6.9e-18, 0.05, 2)) == "+0 ±0.05  within noise"
    assert study.answer._difference(Estimate(-0.06, 0.05, 2)) == "-0.06 ±0.05"


def test_times_have_three_digits_and_their_reach_over_seeds() -> None:
    assert study.answer._spent("images_per_second", Estimate(1086.4, 123.0, 5)) == "1090 ±120"
    assert study.answer._spent("train_seconds", Estimate(92.87, 23.4, 5)) == "92.9 ±23"
    assert study.answer._spent("train_seconds", Estimate(8.682, None, 1)) == "8.68"
    assert study.answer._spent("gmacs", Estimate(0.0118, 0.0, 5)) == "0.0118"
