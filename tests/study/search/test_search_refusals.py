"""What a search refuses, and that nothing is lost by it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from study.search.storage import JOURNAL
from tests.study.search.fake_objectives import (
    SWEEP,
    never,
)
from tests.study.search.searching import Search, told

FAULTS = {
    "unknown key": ("search.trails=3", r"unknown key search.trails: did you mean search.trials|unknown key .*trails"),
    "unknown sampler": ("search.sampler=tp", r"search.sampler='tp' is not valid: did you mean tpe"),
    "unknown option": ("search.sampler={name: tpe, startup: 3}", r"tpe has no option startup"),
    "no budget": ("search.trials=0", r"search.trials=0 is not valid: must be 1 or more"),
    "budget": ("search.trials=1000000000", r"search.trials=1000000000 is not valid: must be at most"),
    "seed": ("search.seed=4294967296", r"search.seed=4294967296 is not valid: must be at most 4294967295"),
    "a list": ("search.sampler={name: [tpe]}", r"sampler=\['tpe'\] is not valid"),
    "kind": ("search.sampler={name: tpe, n_startup_trials: soon}", r"n_startup_trials='soon' is not valid: .* int$"),
    "cmaes' kind": ("search.sampler={name: cmaes, sigma0: abc}", r"search.sampler.sigma0='abc' .* must be float"),
    "code": ("search.sampler={name: tpe, gamma: 3}", r"search.sampler.gamma=3 is not valid: optuna wants code"),
    "population": ("search.sampler={name: nsga2, population_size: 0}", r"nsga2 is not valid.*\[population_size=0\]"),
    "pruner's kind": ("search.pruner={name: median, n_warmup_steps: 1.5}", r"n_warmup_steps=1.5 .* must be int"),
    "launcher": ("launcher={name: [local]}", r"launcher=\['local'\] is not valid"),
    "unproduced": ("search.objectives=fid", r"no run of this sweep produces fid"),
    "misspelt": ("search.objectives=val_los", r"produces val_los: did you mean val_loss"),
    "mixed": ("search.objectives=[val_loss, {val_loss: maximize}]", r"val_loss is given in both directions"),
    "direction": ("search.objectives={val_loss: down}", r"objectives.val_loss='down' is not valid: must be minimize"),
    "two for cmaes": ("search={sampler: cmaes, objectives: [val_loss, gmacs]}", r"it takes one objective, not 2"),
    "two pruned": (
        "search={pruner: median, objectives: [val_loss, gmacs]}",
        r"with several objectives nothing is",
    ),
    "curves": ("search={pruner: median, objectives: gmacs}", r"hears val_loss"),
    "seeds": ("search.pruner=wilcoxon", r"compares seeds, and of 1 none can prune: give it 5 or more"),
    "constraint": ("search.constraints={gmac: 1}", r"constraint gmac is no metric of a run: did you mean gmacs"),
    "per": ("search.per=backbone", r"per=backbone is no axis with a list of values"),
    "empty space": ("axes=null", r"nothing to search"),
    "empty range": ("axes.train.lr='uniform(2, 1)'", r"uniform\(2, 1\) is empty"),
    "no field": ("axes.train.rate='uniform(1, 2)'", r"unknown key train.rate"),
    "unreachable": ("search.storage='sqlite:////nowhere/at/all.db'", r"cannot be reached"),
    "no such storage": ("search.storage='nosuch://x'", r"cannot be reached"),
    "two nodes": ("launcher={name: slurm, nodes: 2}", r"a run of a search has one process, not 2"),
    "force": ("--force", r"--force does not go with search"),
    "match": ("match={like: baseline}", r"match: does not go with search"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    word, complaint = FAULTS[fault]
    assert search(SWEEP, word, work=never) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert re.search(complaint, lines[0]), lines[0]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("axes.train.lr='loguniform(1e-4, 1e-2)'", r"begun with train.lr=loguniform\(0.0001, 0.1\), now .*0.01\)"),
        ("overrides.train.images=128", r"begun with train.images=64, now 128"),
        ("search.objectives=gmacs", r"begun with objectives="),
    ],
)
def test_a_changed_space_is_refused_and_nothing_is_lost(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str], word: str, complaint: str
) -> None:
    assert search() == 0
    before, journal = told(tmp_path), (tmp_path / "r" / "lrs" / JOURNAL).read_bytes()
    capsys.readouterr()
    assert search(SWEEP, word, work=never) == 2
    line = capsys.readouterr().err.strip()
    assert re.search(complaint, line), line
    assert "\n" not in line
    assert told(tmp_path) == before
    assert (tmp_path / "r" / "lrs" / JOURNAL).read_bytes() == journal


def test_half_a_line_at_the_journals_end_is_cut_off(tmp_path: Path, search: Search) -> None:
    assert search() == 0
    with (tmp_path / "r" / "lrs" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 6, "wor')
    assert search(SWEEP, "search.trials=7") == 0
    assert len(told(tmp_path)) == 7


@pytest.mark.parametrize(
    ("operation", "change", "complaint"),
    [
        (0, {"directions": [2]}, "search lrs is damaged: its directions are others"),
        (2, {"user_attr": {"facts": []}}, "search lrs is damaged: what it is about cannot be read"),
        (5, {"param_value_internal": 1e9}, r"search lrs is damaged: train\.weight_decay of trial 5"),
        (6, {"values": []}, "search lrs is damaged: values of trial 5"),
        (6, {"state": "text"}, r"search\.journal is damaged: "),
        (8, {"user_attr": {"runs": 1}}, "search lrs is damaged: runs of trial 5"),
        (8, {"user_attr": {"runs": [1]}}, "search lrs is damaged: runs of trial 5"),
        (8, {"user_attr": {"again": []}}, "search lrs is damaged: again of trial 5"),
        (8, {"user_attr": {"lost": [1]}}, "search lrs is damaged: lost of trial 5"),
    ],
)
def test_a_journal_that_no_search_wrote_is_refused_and_left_as_it_is(
    operation: int,
    change: dict[str, Any],
    complaint: str,
    tmp_path: Path,
    search: Search,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The last line of one of optuna's operations says something else."""
    assert search() == 0
    journal = tmp_path / "r" / "lrs" / JOURNAL
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    last = max(number for number, line in enumerate(lines) if line["op_code"] == operation)
    lines[last] |= change
    written = "".join(json.dumps(line) + "\n" for line in lines)
    journal.write_text(written, encoding="utf-8")
    capsys.readouterr()
    assert search(work=never) == 2
    error = capsys.readouterr().err
    assert re.search(complaint, error), error
    assert error.count("\n") == 1
    assert journal.read_text(encoding="utf-8") == written


@pytest.mark.parametrize("last", ["null", '{"op_code": 6, "wor', "[" * 10_000], ids=["null", "half", "deep"])
def test_a_last_line_that_is_no_record_is_refused(
    last: str, tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole by its line's end: optuna waits for more of it, and fails when somebody has written the next."""
    assert search() == 0
    with (tmp_path / "r" / "lrs" / JOURNAL).open("a", encoding="utf-8") as file:
        file.write(last + "\n")
    capsys.readouterr()
    assert search(SWEEP, "search.trials=7", work=never) == 2
    assert re.search(r"search\.journal is damaged: .+\n", capsys.readouterr().err)


def test_a_damaged_file_of_rows_is_named(tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(SWEEP, "search.trials=2") == 0
    rows = next((tmp_path / "r").glob("runs/*/rows.jsonl"))
    rows.write_text('{"half":', encoding="utf-8")
    capsys.readouterr()
    assert search(SWEEP, "search.trials=3") == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("error: ")
    assert f"{rows}:1" in error
