"""The command line: tables, sweep files, and one-line refusals."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys

import pytest
from rich.console import Console

from models import named_config
from study.cost.__main__ import arguments as parse_arguments
from study.cost.__main__ import main, report


def test_table_compares_with_the_paper(capsys):
    assert main(["dit-xl/2", "diffussm-xl", "--size", "256", "512"]) == 0
    out = capsys.readouterr().out
    assert "118.621" in out
    assert "524.538" in out
    assert "fits M=2 and no other ratio" in " ".join(out.split())
    assert "multiply-accumulates" in out


def test_csv_and_json_and_latex_say_the_same(capsys):
    arguments = ["dit-s/2", "--images", "1e6", "--steps", "10", "--guided"]
    main([*arguments, "--json"])
    (as_json,) = json.loads(capsys.readouterr().out)["rows"]
    main([*arguments, "--csv"])
    (as_csv,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    main([*arguments, "--latex"])
    latex = capsys.readouterr().out
    total = named_config("dit-s/2").macs().total
    assert as_json["gmacs"] == float(as_csv["gmacs"]) == total / 1e9
    assert as_json["run_gmacs"] == total * 1e6 / 1e9
    assert as_json["sample10_guided_tmacs"] == 20 * total / 1e12
    assert as_json["train_pflops"] == pytest.approx(6 * total * 1e6 / 1e15)
    assert r"\toprule" in latex
    assert "6.05567" in latex


def test_by_module(capsys):
    main(["dit-tiny", "--by-module"])
    out = capsys.readouterr().out
    assert "blocks.2" in out
    assert "qkv" in out


def test_memory_and_exact_backward_columns(capsys):
    main(["dit-tiny", "--batch", "64", "--exact", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert 0 < row["activations_gib"] < row["peak_gib"]
    assert row["train_exact_gmacs"] == pytest.approx(row["train_gmacs"], rel=0.01)


def test_audit(capsys):
    main(["--audit"])
    out = capsys.readouterr().out
    assert "13.1% fewer" in out
    assert "a slip in the exponent" in out


SWEEP = """
defaults: [backbone: diffussm-tiny]
overrides: {backbone.state: 8, train.lr: 0.001}
axes: {backbone.M: [1, 2, 4], seed: [0, 1]}
match: {like: diffussm-tiny, free: [depth, width], tolerance: 2%}
"""


def test_a_sweep_is_costed_at_the_size_of_its_data(tmp_path, capsys):
    """As it will be run: one row per network, whatever the seeds."""
    path = tmp_path / "both.yaml"
    path.write_text("defaults: [data: digits8]\naxes: {backbone: [dit-s/2, unet-tiny], seed: [0, 1]}")
    assert main([str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["backbone"], row["px"]) for row in rows] == [("dit-s/2", 8), ("unet-tiny", 8)]


def test_what_match_may_vary_follows_the_backbone(capsys):
    """A U-Net has no depth."""
    assert main(["unet-tiny", "--match", "like=unet-tiny", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["backbone"].startswith("unet-tiny width=")


@pytest.mark.parametrize("arguments", [["--audit"], ["dit-xl/2", "diffussm-xl", "--size", "256", "512"]])
def test_nothing_is_cut_or_wider_than_a_narrow_terminal(arguments):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    report(parse_arguments(arguments), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_a_reader_that_stops_early_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m study.cost dit-tiny | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr == ""


def test_a_sweep_file_at_equal_compute(tmp_path, capsys):
    path = tmp_path / "M.yaml"
    path.write_text(SWEEP)
    assert main([str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["backbone"].split()[1] for row in rows] == ["M=1", "M=2", "M=4"]
    target = named_config("diffussm-tiny").macs().total / 1e9
    assert all(row["gmacs"] == pytest.approx(target, rel=0.02) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dit-xxl/2"], "unknown backbone 'dit-xxl/2': did you mean"),
        (["dit-xl/2", "--size", "100"], "size=100"),
        (["dit-s/2", "--size", "24"], "size=(3, 3)"),
        (["dit-s/2", "--set", "M=2"], "unknown key M"),
        (["dit-s/2", "--set", "depth=deep"], "depth='deep' is not valid: must be an integer"),
        (["dit-s/2", "--set", "depth=1.5"], "depth=1.5 is not valid: must be an integer"),
        (["dit-s/2", "--set", "width=null"], "width=None"),
        (["diffussm-s", "--set", "M=true"], "M=True"),
        (["dit-s/2", "--set", "depth=[1"], "depth='[1' is not valid: must be a YAML value"),
        (["dit-s/2", "--images", "-4"], "images=-4.0 is not valid: must be a positive number"),
        (["dit-s/2", "--images", "nan"], "images=nan"),
        (["dit-s/2", "--audit"], "audit=True"),
        (["--audit", "--json"], "audit=True"),
        (["dit-s/2", "--match", "gmacs=1e9"], "cannot be met within 1.00%"),
        (["dit-s/2", "--match", "gmacs=6", "--free", "colour"], "free='colour'"),
        (["dit-s/2", "--match", "latency_ms=5"], "rows=None"),
        (["dit-s/2", "--match", "latency_ms=5", "--rows", "missing.jsonl"], "missing.jsonl"),
        (["dit-tiny", "--batch", "0"], "batch=0"),
        (["missing.yaml"], "missing.yaml cannot be read: No such file"),
        ([], "one or more names"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: [unclosed", "expected ',' or ']'"),
        ("- a\n- b", "mapping"),
        ("axes: {backbone.M: [1]}", "axis backbone.M names no field"),
        ("defaults: [backbone: dit-tiny]\naxes: {backbone.P: 2}", ":2: axis backbone.P=2 is not valid: must be a list"),
        ("defaults: [backbone: dit-tiny]\naxes: {backbone.P: [3]}", "P=3"),
        ("defaults: [backbone: dit-tiny]\nmatch: 3\naxes: {seed: [0]}", "match: must be a mapping"),
    ],
)
def test_a_bad_sweep_file_is_named(text, message, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    err = capsys.readouterr().err
    assert str(path) in err
    assert message in err
    assert err.count("\n") == 1


CHILD = """
import sys
import torch
from study.cost.__main__ import arguments as parse_arguments
from study.cost.__main__ import main, report
from study.progress import peak_memory_mib
code = main(["dit-xl/2", "diffussm-xl", "--size", "512", "--csv"])
print(peak_memory_mib(torch.device("cpu")), file=sys.stderr)
sys.exit(code)
"""


def test_nothing_is_allocated_for_the_largest_models():
    """Their weights alone, 5.5 GB of float32, would not fit in what the process used."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=300, check=True)
    assert "524.538" in done.stdout
    assert float(done.stderr.split()[-1]) / 2**10 < 1.5  # GiB
