"""Whether a change is faster: told of code that is, not told of noise."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from study.bench.__main__ import BRIEF, main
from study.bench.change import Change, changed, level_of
from study.bench.checkout import Checkout
from study.bench.compare import CPU, Ratio, paired_ratio
from study.bench.config import Cell, Protocol, Spin
from study.bench.process import RefusedError
from study.bench.schedule import measure
from tests.study.bench.simulated import Machine, SimulatedCell

ROOT = Path(__file__).parents[3]
QUICK = ["--min-samples", "6", "--min-seconds", "0", "--repeats", "3", "--blocks", "2"]
BELIEVING = ["--noisy", "999", "--rejected", "1000"]
CELL = Cell(Spin(1))


def of_ratios(time: tuple[float, float], other: tuple[float, float]) -> Change:
    ratios = [Ratio((low * high) ** 0.5, (low, high)) for low, high in (time, other)]
    return Change(CELL, *ratios, (30, 30), 5)


@pytest.mark.parametrize(
    ("time", "other", "verdict"),
    [
        ((1.1, 1.3), (1.1, 1.2), "slower"),
        ((0.7, 0.9), (0.8, 0.9), "faster"),
        ((1.1, 1.3), (0.9, 1.1), "no answer, the two clocks disagree"),
        ((0.8, 0.9), (1.1, 1.2), "no answer, the two clocks disagree"),
        ((0.97, 1.05), (0.99, 1.01), "no difference told"),
        ((0.8, 1.5), (0.9, 1.1), "no answer, the interval is too wide"),
    ],
)
def test_a_verdict_needs_both_clocks_and_a_narrow_interval(
    time: tuple[float, float], other: tuple[float, float], verdict: str
) -> None:
    found = of_ratios(time, other)
    assert found.verdict == verdict
    assert "n 30 and 30 in 5 processes each" in str(found)


def test_intervals_of_a_report_hold_together() -> None:
    assert level_of(1) == pytest.approx(0.95)
    assert level_of(8) == pytest.approx(1 - 0.05 / 8)


class Neighbour(Machine):
    """Besides all else, somebody takes half of the processor, for three seconds of every seven."""

    def spend(self, seconds: float) -> None:
        busy = (self.now / 7 + self.phase) % 1 > 0.57
        super().spend(seconds * (2 if busy else 1))


@pytest.mark.parametrize("kind", [Machine, Neighbour])
def test_code_that_did_not_change_is_not_said_to_have(kind: type[Machine]) -> None:
    """Reports of four cells on machines with jitter, drift, unequal processes and a neighbour: few are wrong."""
    wrong = 0
    for seed in range(60):
        machine = kind(seed, jitter=0.05, process=0.03)
        verdicts = []
        for seconds in (0.003, 0.01, 0.02, 0.05):
            starts = {name: partial(SimulatedCell, machine, seconds) for name in ("before", "after")}
            found = measure(starts, BRIEF)
            how = partial(paired_ratio, level=level_of(4))
            verdicts.append(changed(CELL, found["before"].taken, found["after"].taken, BRIEF, how).verdict)
        wrong += bool({"faster", "slower"} & set(verdicts))
    assert wrong <= 6  # of 60: at 5 % more than 6 would have a chance of 3 %


def test_a_change_by_a_fifth_is_told() -> None:
    told = []
    for seed in range(20):
        machine = Machine(seed, jitter=0.03, process=0.01)
        found = measure(
            {"before": partial(SimulatedCell, machine, 0.01), "after": partial(SimulatedCell, machine, 0.012)}, BRIEF
        )
        sides = found["before"].taken, found["after"].taken
        told.append(changed(CELL, *sides, BRIEF, partial(paired_ratio, level=level_of(4))).verdict)
    assert told.count("slower") >= 18
    assert "faster" not in told


def test_samples_that_spread_give_no_answer() -> None:
    machine = Machine(0, jitter=0.6)
    found = measure({"a": partial(SimulatedCell, machine, 0.01)}, BRIEF)["a"].taken
    change = changed(CELL, found, found, BRIEF, paired_ratio)
    assert change.time is None
    assert "no answer, the samples before spread too far" in str(change)
    assert change.as_tree()["time"] is None


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose unit of work is twice ours."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("study", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "study" / "bench" / "workload.py"
    text = file.read_text(encoding="utf-8")
    assert text.count("range(20_000 * units)") == 1
    file.write_text(text.replace("range(20_000 * units)", "range(40_000 * units)"), encoding="utf-8")
    return folder


def test_each_checkout_runs_its_own_code_in_turns(slower: Path) -> None:
    protocol = Protocol(min_samples=6, min_seconds=0, repeats=2, blocks=3)
    with Checkout(ROOT, 1) as ours, Checkout(slower, 1) as theirs:
        starts = {"ours": partial(ours.start, CELL), "theirs": partial(theirs.start, CELL)}
        found = {name: outcome.taken for name, outcome in measure(starts, protocol).items()}
    assert 1.5 < paired_ratio(found["theirs"], found["ours"], CPU).value < 2.7
    assert {taken.turn for taken in found["ours"]} == {0, 1}


def test_the_command_reports_and_leaves_nothing(
    slower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", str(slower), str(ROOT), "--names", "spin:4", "--mode", "forward", "--json", *QUICK, *BELIEVING]
    assert main(words) == 0
    (change,) = json.loads(capsys.readouterr().out)
    assert change["n"] == [6, 6]
    assert 0.3 < change["cpu_or_wall"]["value"] < 0.75
    assert change["verdict"] != "slower"
    assert list(tmp_path.iterdir()) == []


def test_code_that_cannot_be_asked_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    (broken / "study" / "bench").mkdir(parents=True)
    (broken / "study" / "bench" / "cell.py").write_text("")
    words = ["--names", "spin:1", "--mode", "forward", *QUICK]
    assert main(["compare", str(broken), str(ROOT), *words]) == 2
    assert "its code ended with" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "study").mkdir()
    assert main(["compare", str(tmp_path), str(ROOT), *words]) == 2
    assert "a folder with this project's code" in capsys.readouterr().err


def test_a_process_that_dies_is_named() -> None:
    with Checkout(ROOT, 1) as ours:
        process = ours.start(CELL)
        process.close()
        with pytest.raises(RefusedError, match="ended by itself"):
            process.ask("facts")
