"""The command line as a whole: every command lists, explains, refuses and stops in the same way."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from study.__main__ import COMMANDS, main
from study.answer import main as answer
from study.command_line import CODES, STOPPED, UNREAD, command_parser, finish, options_of, verbs_of
from study.completion import script
from study.cost.__main__ import main as cost
from study.options import PARSERS, parser_of
from study.report import arguments as report_arguments
from study.results_command import main as results_command
from study.run_directory import RunDirectory
from study.status import main as status
from study.strict import ConfigError
from study.sweep import main as sweep
from tests.study import fake_runs
from tests.study.sweeping import SWEEP, sweep_file

ROOT = Path(__file__).parents[2]
LIGHT = [command for command in COMMANDS if command != "bench"]  # bench asks its protocol for its defaults


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep called `lrs` of four runs."""
    folder = tmp_path_factory.mktemp("store")
    text = SWEEP.replace("[0, 1, 2, 3, 4, 5]", "[0, 1]")
    assert sweep([str(sweep_file(folder, text)), f"results={folder}", "launcher=inline"], fake_runs.quick) == 0
    return folder


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_all_commands_are_listed_with_a_line_each_at_once() -> None:
    listed = python("-X", "importtime", "-m", "study")
    assert listed.returncode == 0
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  ")]
    assert dict(lines) == COMMANDS  # type: ignore[arg-type]
    assert not re.search(r"\| +(torch|numpy|hydra|pandas)$", listed.stderr, re.M)


def test_every_command_is_a_module_with_a_parser() -> None:
    assert PARSERS.keys() == COMMANDS.keys()
    assert all(find_spec(f"study.{command}") for command in COMMANDS)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {"diffusion-study": "study.__main__:main"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(command: str) -> None:
    parser = parser_of(command)
    for each, words in [(parser, command), *((below, f"{command} {verb}") for verb, below in verbs_of(parser).items())]:
        assert each.prog == f"python -m study.{words}"
    told = parser.format_help()
    assert f"python -m study.{command} " in told.partition("\n\n")[2]
    assert CODES in told


CODE = """
import sys
from study.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(sorted({"torch", "numpy", "hydra", "pandas", "scipy", "rich"} & set(sys.modules)), code, file=sys.stderr)
"""


def test_no_help_waits_for_torch() -> None:
    """In one process, each after the others: what one of them imported would be seen at the end."""
    code = CODE.replace("main(sys.argv[1:])", "[main([command, '--help']) for command in sys.argv[1:]]")
    done = python("-c", code, *LIGHT)
    assert done.stderr == f"[] {[0] * len(LIGHT)}\n"


def test_both_spellings_do_the_same(store: Path, tmp_path: Path) -> None:
    words = ["lrs", "--results", str(store)]
    told = [python(*spelling, *words).stdout for spelling in (("-m", "study", "status"), ("-m", "study.status"))]
    assert told[0] == told[1]
    assert "4 runs: 4 done" in told[0]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # here: other tests have imported them
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["swep"], "error: no command swep: did you mean sweep?"),
        (["status", "--resluts", "r"], "unknown option --resluts: did you mean --results?"),
        (["sweep", "a.yaml", "--results", "r"], "unknown option --results r: did you mean results=r?"),
        (["sweep", "a.yaml", "--results=r", "--plan"], "unknown option --results=r: did you mean results=r?"),
        (["run", "--train.lr", "0.1"], "unknown option --train.lr: did you mean train.lr=...?"),
        (["sweep", "a.yaml", "--paln"], "unknown option --paln: did you mean --plan?"),
        (["logs"], "the following arguments are required: run"),
        (["results", "--results", "/nowhere", "verify"], "/nowhere is no result store"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["results", "migrate", "train.new=[1"], "train.new='[1' is not valid: must be a YAML value"),
        (["interchange", "import", "w.pt", "--backbone", "dit-tiny", "--out", "m", "--set", "size=["], "size='['"),
        (["bench", "dit-tiny:depth=["], "depth='['"),
    ],
)
def test_bad_words_are_one_line_and_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_how_work_ends(capfd: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> int:
        raise error

    assert finish(lambda: 0) == 0
    assert finish(lambda: 1) == 1
    assert finish(lambda: failing(ConfigError("two\nlines"))) == 2
    assert finish(lambda: failing(FileNotFoundError(2, "No such file or directory", "a.npz"))) == 2
    assert finish(lambda: failing(ValueError("no")), (ValueError,)) == 2
    assert finish(lambda: failing(KeyboardInterrupt())) == STOPPED == 130
    assert finish(lambda: failing(ConfigError("one:\n  of it"))) == 2
    said = "error: two\nerror: lines\nerror: a.npz: No such file or directory\nerror: no\nerror: one:\n  of it\n"
    assert capfd.readouterr().err == said
    with pytest.raises(ZeroDivisionError):  # a bug is not to be hidden
        finish(lambda: failing(ZeroDivisionError()))


@pytest.mark.parametrize("words", [["study.status", "lrs", "--results", "{store}"], ["study"]])
def test_a_reader_that_has_seen_enough_is_no_error(words: list[str], store: Path) -> None:
    command = [sys.executable, "-m", *(word.format(store=store) for word in words)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (UNREAD, "")


SLOW = """
import sys, time
sys.argv[0] = "-m"  # as Python sets it while it looks for the module
import study
print("importing", flush=True)
time.sleep(60)
"""


def interrupted(command: list[str], at: str, **options: object) -> tuple[int, str]:
    """Exit code and what was said on standard error of a process that gets Ctrl-C after it printed `at`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    for line in process.stdout:
        if at in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_ctrl_c_during_imports_says_nothing() -> None:
    assert interrupted([sys.executable, "-c", SLOW], "importing") == (130, "")


@pytest.mark.parametrize("words", [["status", "lrs", "--watch"], ["status", "--watch", "--json"]], ids=" ".join)
def test_ctrl_c_ends_a_watch(words: list[str], store: Path) -> None:
    command = [sys.executable, "-m", "study", *words, "--results", str(store)]
    assert interrupted(command, "done") == (130, "")


def test_ctrl_c_while_torch_is_imported() -> None:
    process = subprocess.Popen(
        [sys.executable, "-v", "-m", "study.run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr or ():
        if line.startswith("import 'torch.") or "import 'torch'" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


def in_terminal(words: list[str], **environment: str) -> str:
    """What a command prints where it sees a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    said = b"".join(_heard(ours))
    process.wait()
    os.close(ours)
    return said.decode()


def _heard(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            yield os.read(descriptor, 65536)
        except OSError:  # nobody has the other end any more
            return


COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;[0-9;]+)m")
TABLE = """
from rich.console import Console
Console().print("[red]word[/red] 12.5 'text'")
"""


def test_colours_are_for_terminals_and_not_with_no_color() -> None:
    """Of the library that draws all tables, and of a command."""
    shown = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    assert COLOUR.search(in_terminal(["-c", TABLE], **shown))
    assert not COLOUR.search(in_terminal(["-c", TABLE], NO_COLOR="1"))
    assert not COLOUR.search(in_terminal(["-m", "study.cost", "dit-tiny"], NO_COLOR="1"))
    assert "\x1b" not in python("-m", "study.cost", "dit-tiny").stdout


def test_json_of_everything_that_is_read(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(code: int) -> object:
        assert code == 0
        return json.loads(capsys.readouterr().out)

    one = read(status(["lrs", "--results", str(store), "--json"]))
    assert isinstance(one, dict)
    assert one["standings"] == {"done": 4}
    assert len({run["run"] for run in one["runs"]}) == 4
    everything = read(status(["--results", str(store), "--json"]))
    assert isinstance(everything, dict)
    assert everything["sweeps"][str(store / "lrs")]["runs"] == one["runs"]
    run = read(status([one["runs"][0]["run"][:8], "--results", str(store), "--json"]))
    assert isinstance(run, dict)
    assert run["runs"][0]["status"] == "done"
    found = read(answer(["lrs", "--results", str(store), "--json"]))
    assert isinstance(found, dict)
    assert {cell["verdict"] for cell in found["cells"] if cell["metric"] == "val_loss"} <= {
        "baseline", "within noise", "beyond noise",
    }  # fmt: skip
    assert found["missing"] == []
    assert read(results_command(["--results", str(store), "verify", "--json"])) == []
    assert read(cost(["dit-tiny", "--json"]))


def test_the_answer_as_json_has_the_numbers_of_its_table(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    assert answer(["lrs", "--results", str(store)]) == 0
    capsys.readouterr()
    assert answer(["lrs", "--results", str(store), "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    table = pd.read_csv(store / "lrs" / "answer.csv")
    assert [cell["mean"] for cell in cells] == pytest.approx(list(table["mean"]))


def test_a_plan_as_json(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SWEEP.replace("[0, 1, 2, 3, 4, 5]", "[0, 1]")
    words = [str(sweep_file(store, text)), f"results={store}"]
    assert sweep([*words, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    stored = json.loads((store / "lrs" / "plan.json").read_text(encoding="utf-8"))
    assert [point["run"] for point in plan["points"]] == [point["run"] for point in stored["points"]]
    assert {point["state"] for point in plan["points"]} == {"done"}
    assert all(point["cost"]["params"] > 0 for point in plan["points"])
    assert sweep([*words, "--json"]) == 2
    assert "--json prints the plan" in capsys.readouterr().err


def test_results_lie_where_one_says_from_any_directory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything that reads a store takes its place by the same option, and a path relative to where one is."""
    for command in ("status", "logs", "cancel", "answer", "report", "results", "score"):
        assert "--results" in options_of(parser_of(command))
    assert "--results" in options_of(verbs_of(parser_of("interchange"))["export"])
    assert report_arguments().parse_args(["lrs"]).results == Path("results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(store)
    for results in ([], ["--results", os.path.relpath(store)]):
        assert status(["lrs", *results]) == 0
        assert "4 runs: 4 done" in capsys.readouterr().out


TAB = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _diffusion_study; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["diffusion-study", "sw"], {"sweep"}),
        (["python", "-m", "study", "rep"], {"report"}),
        (["python3", "-m", "study.st"], {"study.status"}),
        (["python", "-m", "study.sweep", "--re"], {"--retry", "--resubmit"}),
        (["diffusion-study", "sweep", "sweeps/ablate_d"], {"sweeps/ablate_depth.yaml"}),
        (["diffusion-study", "data", "sh"], {"show"}),
        (["diffusion-study", "data", "show", "--te"], {"--texture"}),
        (["diffusion-study", "completion", "z"], {"zsh"}),
        (["python", "-m", "pytest", "--"], set()),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_completion(words: list[str], expected: set[str], scripts: dict[str, str]) -> None:
    command = ["bash", "--norc", "-c", TAB, "bash", *words]
    environment = {**os.environ, "SCRIPT": scripts["bash"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True)
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


def test_completion_offers_the_sweeps_of_a_store(scripts: dict[str, str], store: Path, tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(store)
    command = ["bash", "--norc", "-c", TAB, "bash", "diffusion-study", "answer", ""]
    environment = {**os.environ, "SCRIPT": scripts["bash"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["lrs"]


def test_zsh_takes_the_same_function(scripts: dict[str, str]) -> None:
    inner = scripts["bash"].partition("for _python")[0]
    assert inner in scripts["zsh"]
    assert "bashcompinit" in scripts["zsh"]


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: script(shell) for shell in ("bash", "zsh")}


def test_json_and_logs_of_damaged_stores_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lrs").mkdir()
    (tmp_path / "lrs" / "plan.json").write_text('{"points": 3}', encoding="utf-8")
    assert status(["lrs", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert answer(["lrs", "--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'lrs' / 'plan.json'} is damaged")
    directory = RunDirectory(tmp_path, "0123456789abcdef")
    directory.path.mkdir(parents=True)
    directory.state.write_text("[]", encoding="utf-8")
    assert status(["0123", "--results", str(tmp_path)]) == 2
    assert "state.json is not a run state" in capsys.readouterr().err


def test_one_damaged_plan_hides_no_other_sweep(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "store" / "broken").mkdir()
    (tmp_path / "store" / "broken" / "plan.json").write_text("[[", encoding="utf-8")
    assert status(["--results", str(tmp_path / "store")]) == 0
    broken, whole = capsys.readouterr().out.splitlines()
    assert "plan.json is damaged" in broken
    assert "done" in whole
    assert status(["--results", str(tmp_path / "store"), "--json"]) == 0
    sweeps = json.loads(capsys.readouterr().out)["sweeps"]
    assert [sorted(each) for each in sweeps.values()] == [["error"], ["runs", "standings"]]


def test_a_full_disk_is_no_bad_input_and_a_closed_output_no_failure(store: Path) -> None:
    command = f"'{sys.executable}' -m study.status --results '{store}'"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (1, "error: No space left on device\n")
    closed = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_the_store_is_named_before_or_after_the_verb(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--results", str(store), "verify"], ["verify", "--results", str(store)]):
        assert results_command(words) == 0
        assert f"{store}: every run is whole" in capsys.readouterr().out


def test_parsers_take_percent_signs_and_verbs() -> None:
    parser = command_parser("x", "100 %, plainly")
    assert verbs_of(parser) == {}
    assert "100 %" in parser.format_help()
