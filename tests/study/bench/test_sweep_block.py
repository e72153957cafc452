"""A sweep file that times its networks: what is planned, measured, left alone and refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from study.bench import command, suite
from study.bench.block import BenchConfig
from study.bench.command import families, parts
from study.bench.config import Cell, Network, Protocol, Spin, spelled, spelling_of
from study.bench.forecast import Known
from study.bench.store import machine_folder
from study.estimate import GUESSED_GMACS_PER_SECOND
from study.plan import make_plan
from study.results import Row, read_rows, write_rows
from study.strict import ConfigError
from study.sweep import main
from study.sweep_file import parse_sweep, to_yaml

QUICK = "{mode: forward, min_samples: 4, min_seconds: 0, repeats: 2, blocks: 2, noisy: 999, rejected: 1000}"
TEXT = f"""\
# Which is faster?
defaults: [data: digits8]
axes:
  backbone: [dit-tiny, diffussm-tiny]
  seed: [0, 1]
baseline: {{backbone: dit-tiny}}
bench: {QUICK}
"""


def file_of(folder: Path, text: str = TEXT) -> str:
    (folder / "speed.yaml").write_text(text, encoding="utf-8")
    return str(folder / "speed.yaml")


@pytest.mark.parametrize(
    "text", ["dit-s/2", "diffussm-s:M=4,stream=full", "unet-tiny:channel_mult=[1,1,1],heads=2,head_width=null"]
)
def test_a_spelling_and_its_config_give_each_other(text: str) -> None:
    config = spelled(text)
    assert spelled(spelling_of(text.partition(":")[0], config)) == config
    assert spelled(text, (16, 16)).size == (16, 16)


@pytest.mark.parametrize("text", ["dit-s/2:depht=3", "dit-s/2:depth", "dit-s/2:depth=many", "dit-s/3"])
def test_a_misspelt_network_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"depth|dit-s/2") as refused:
        spelled(text)
    assert "\n" not in str(refused.value)


def test_the_block_is_part_of_the_file_and_written_back() -> None:
    sweep = parse_sweep(TEXT, "speed")
    assert sweep.bench == BenchConfig(min_samples=4, min_seconds=0, repeats=2, blocks=2, noisy=999, rejected=1000)
    assert parse_sweep(to_yaml(sweep), "speed") == sweep
    assert parse_sweep(TEXT.replace(QUICK, ""), "speed").bench == BenchConfig()


def test_repetitions_are_one_network_and_every_family_has_its_baseline() -> None:
    text = TEXT.replace("baseline: {backbone: dit-tiny}", "baseline: {backbone.depth: 2}").replace(
        "  seed", "  backbone.depth: [1, 2]\n  seed"
    )
    found = families(make_plan(parse_sweep(text, "speed")))
    names = [[command.spelled_point(parse_sweep(text, "speed"), point) for point in family] for family in found]
    assert names == [["dit-tiny:depth=2", "dit-tiny:depth=1"], ["diffussm-tiny:depth=2", "diffussm-tiny:depth=1"]]


def test_batches_of_one_table_are_measured_together() -> None:
    cells = [Cell(Network("dit-tiny", (8, 8)), mode, batch) for batch in (1, 16) for mode in ("forward", "train")]
    assert [[cell.batch for cell in part.cells] for part in parts(cells)] == [[1, 16], [1, 16]]


def test_time_is_foretold_by_what_was_measured_and_else_by_macs(tmp_path: Path) -> None:
    cell = Cell(Network("dit-tiny", (8, 8)))
    gmacs = cell.gmacs()
    assert gmacs
    assert Known(tmp_path).call(cell) == pytest.approx(gmacs / GUESSED_GMACS_PER_SECOND)
    folder = tmp_path / "runs" / cell.id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "name: x\nsubject: {backbone: dit-tiny, size: [8, 8], peer: ''}\nmode: forward\nbatch: 1\ndtype: fp32\n"
        "compile: false\ndevice: cpu\nthreads: 1\nsteps: 20\nguidance: 1.0\n"
    )
    write_rows(folder / "rows.jsonl", [Row(run="a", metric="latency_ms", value=500, units="ms", n=3, protocol="p")])
    known = Known(tmp_path)
    assert known.call(cell) == 0.5
    larger = Cell(Network("dit-tiny", (8, 8)), batch=4)
    assert known.call(larger) == pytest.approx(2)  # at the rate that the machine reached
    assert known.call(Cell(Spin(1))) == 0


def test_cells_are_measured_once_and_again_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[list[str]] = []
    real = command.run_suite

    def counted(cells, *rest):  # type: ignore[no-untyped-def]
        measured.append([f"{cell.subject.name} {cell.mode} {cell.batch}" for cell in cells])
        return real(cells, *rest)

    monkeypatch.setattr(command, "run_suite", counted)
    words = [file_of(tmp_path), f"results={tmp_path / 'results'}"]
    assert main([*words, "--plan"]) == 0
    assert "2 cells, 0 of them done" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert main(words) == 0
    assert measured.pop() == ["dit-tiny forward 1", "diffussm-tiny forward 1"]
    folder = machine_folder("cpu", tmp_path / "results" / "bench")
    rows = [row for file in folder.glob("runs/*/rows.jsonl") for row in read_rows(file)]
    assert {row.provenance["baseline"] for row in rows if row.metric == "latency_ratio"} == {"dit-tiny"}
    assert all({"cpu", "torch", "commit"} <= row.provenance.keys() for row in rows)
    assert "diffussm-tiny" in capsys.readouterr().out
    assert main(words) == 0
    assert measured == []
    assert main([*words, "bench.mode=[forward,train]"]) == 0
    assert measured.pop() == ["dit-tiny train 1", "diffussm-tiny train 1"]
    assert main([*words, "bench.batch=[1,2]"]) == 0
    assert len(measured.pop()) == 4  # throughput is told at the largest batch of its table
    assert main([*words, "--force"]) == 0
    assert len(measured.pop()) == 2
    assert len(pd.read_csv(folder / "table.csv")["cell"].unique()) == 6


def test_a_sweep_killed_between_tables_goes_on_and_tells_throughput(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tables of two batches; killed in the second one."""
    begun: list[int] = []
    stop_at = 4
    real = suite.run_group

    def killed(members, *rest):  # type: ignore[no-untyped-def]
        begun.append(members[0].batch)
        if len(begun) == stop_at:
            raise KeyboardInterrupt
        return real(members, *rest)

    monkeypatch.setattr(suite, "run_group", killed)
    words = [file_of(tmp_path), f"results={tmp_path / 'results'}", "bench.batch=[1,2]", "bench.mode=[forward,train]"]
    assert main([*words, "bench.memory=false"]) == 130
    assert begun == [1, 2, 1, 2]
    stop_at = 0
    assert main([*words, "bench.memory=false"]) == 0
    assert begun[4:] == [1, 2]  # what was a whole table is left alone
    folder = machine_folder("cpu", tmp_path / "results" / "bench")
    told = [row.metric for file in folder.glob("runs/*/rows.jsonl") for row in read_rows(file)]
    assert (told.count("throughput"), told.count("train_throughput")) == (2, 2)
    assert main([*words, "bench.memory=false"]) == 0
    assert len(begun) == 6
    file = next(file for file in folder.glob("runs/*/rows.jsonl") if "train_throughput" in file.read_text("utf-8"))
    write_rows(file, [row for row in read_rows(file) if row.metric != "train_throughput"])  # as once was left
    assert main([*words, "bench.memory=false"]) == 0
    assert begun[6:] == [1, 2]


def test_an_axis_that_changes_no_network_adds_no_cell() -> None:
    text = TEXT.replace("  seed", "  train.lr: [0.001, 0.002]\n  seed")
    (family,) = families(make_plan(parse_sweep(text, "speed")))
    assert [point.config.backbone for point in family] == [spelled("dit-tiny"), spelled("diffussm-tiny")]


def test_what_was_too_noisy_is_told_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [file_of(tmp_path), f"results={tmp_path / 'results'}", "bench.noisy=1e-9", "bench.rejected=1e-9"]
    assert main(words) == 1
    assert "2 cells were too noisy to be believed" in capsys.readouterr().err
    assert main([*words, "--plan"]) == 0
    assert "2 cells, 0 of them done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ("{batsh: 1}", "speed.yaml:7: unknown key bench.batsh: did you mean bench.batch"),
        ("{batch: 0}", "speed.yaml:7: bench.batch="),
        ("{batch: [1, 1]}", "distinct"),
        ("{mode: backward}", "bench.mode[0]='backward'"),
        ("{size: 9}", "speed.yaml:7: bench:"),
        ("{device: abacus}", "device='abacus'"),
        ("{threads: 100000}", "threads=100000"),
        ("{peer: x=y}", "name=path:callable"),
        ("{repeats: 0}", "bench.repeats=0"),
        ("{noisy: 0.5}", "noisy, rejected"),
        ("[forward]", "must be a mapping"),
    ],
)
def test_a_bad_block_is_one_line_and_nothing_is_left(
    block: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([file_of(tmp_path, TEXT.replace(QUICK, block)), f"results={tmp_path / 'results'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("more", "words", "named"),
    [
        ("search: {trials: 3}\n", [], "bench: does not go with search"),
        ("launcher: slurm\n", [], "launcher=slurm does not go with bench"),
        ("", ["--retry", "oom"], "--retry does not go with bench"),
        ("", ["--fail-fast"], "--fail-fast does not go with bench"),
    ],
)
def test_what_does_not_go_with_measuring_is_refused(
    more: str, words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT if not more.startswith("search") else TEXT.replace("baseline: {backbone: dit-tiny}\n", "")
    assert main([file_of(tmp_path, text + more), f"results={tmp_path / 'results'}", *words]) == 2
    assert named in capsys.readouterr().err


def test_a_peer_that_disagrees_stops_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = f"untrue={Path(__file__).parent / 'peers_here.py'}:untrue"
    text = TEXT.replace("{mode", f"{{peer: '{peer}', mode")
    assert main([file_of(tmp_path, text), f"results={tmp_path / 'results'}"]) == 2
    assert "within 0.001, weights shared" in capsys.readouterr().err


def test_a_size_that_a_network_cannot_have_is_named(tmp_path: Path) -> None:
    sweep = parse_sweep(TEXT.replace(QUICK, "{size: 9}"), "speed")
    with pytest.raises(ConfigError, match=r"bench: .*size"):
        command.bench_sweep(sweep, force=False, plan_only=True)


def test_damaged_rows_of_a_machine_are_named(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "abcd" / "rows.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"half":', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"abcd/rows.jsonl:1: .*damaged; remove"):
        Known(tmp_path)


def test_rows_judged_by_other_bounds_have_another_protocol() -> None:
    names = {Protocol().name, Protocol(rejected=0.5).name, Protocol(noisy=0.2).name}
    assert len(names) == 3
    assert Protocol().name == "bench-1-n30-s3-p3-b10"


def test_without_git_the_speed_report_says_so(tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found
        (tmp_path / name).symlink_to(found)
    report = Path(__file__).parents[3] / ".ci" / "report"
    done = subprocess.run(
        [tmp_path / "bash", report], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "git is absent" in done.stdout
