"""A search from its file to its answer, on runs that are closed forms."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy.stats import wilcoxon

from analysis.rows import load_rows
from analysis.trials import settings
from analysis.trials import trials as analysed
from study.config import RunConfig
from study.launch.work import Work
from study.results import Row, append_rows, read_rows
from study.run_directory import RunDirectory, State
from study.search.config import SearchConfig
from study.search.pruning import least_seeds
from study.sweep import main
from study.sweep_file import parse_sweep, read_sweep, to_yaml
from tests.study.search.fake_objectives import (
    STEPS,
    SWEEP,
    bowl,
    bowl_run,
    curve_run,
    diverging_run,
    finished,
    never,
)
from tests.study.search.searching import Search, told
from tests.study.sweeping import sweep_file


def counts(tmp_path: Path) -> list[int]:
    """How often each run was done."""
    return [int(path.read_text(encoding="utf-8")) for path in (tmp_path / "r").glob("runs/*/count")]


def test_every_trial_is_an_ordinary_run_and_its_value_the_rows(tmp_path: Path, search: Search) -> None:
    assert search() == 0
    lines = told(tmp_path)
    assert [line["trial"] for line in lines] == list(range(6))
    for line in lines:
        directory = RunDirectory(tmp_path / "r", line["runs"][0])
        rows = {row.metric: row.value for row in read_rows(directory.rows)}
        assert line["state"] == "complete"
        assert line["objectives"] == {"val_loss": rows["val_loss"]}
        assert rows["gmacs"] == line["values"]["train.weight_decay"]
    assert counts(tmp_path) == [1] * 6
    frame = analysed(load_rows(tmp_path / "r" / "lrs"), "val_loss")
    assert list(frame["value"]) == [line["objectives"]["val_loss"] for line in lines]


def test_called_again_it_does_nothing_and_a_larger_budget_goes_on(tmp_path: Path, search: Search) -> None:
    assert search() == 0
    before = told(tmp_path)
    assert search(work=never) == 0
    assert told(tmp_path) == before
    assert search(SWEEP, "search.trials=9") == 0
    assert told(tmp_path)[:6] == before
    assert len(told(tmp_path)) == 9
    assert counts(tmp_path) == [1] * 9


def test_a_point_in_the_store_is_told_and_not_done_again(tmp_path: Path, search: Search) -> None:
    assert search() == 0
    before = told(tmp_path)
    for path in [*(tmp_path / "r" / "lrs").glob("search.journal*"), tmp_path / "r" / "lrs" / "trials.json"]:
        path.unlink()
    assert search(work=never) == 0
    assert told(tmp_path) == before


def test_a_trial_is_the_mean_over_seeds(tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    text = SWEEP.replace("search:", "  seed: [0, 1, 2]\nsearch:").replace("trials: 6", "trials: 3")
    assert search(text, work=_seeded) == 0
    for line in told(tmp_path):
        values = [read_rows(RunDirectory(tmp_path / "r", run).rows)[0].value for run in line["runs"]]
        assert len(values) == 3
        assert line["objectives"]["val_loss"] == pytest.approx(sum(values) / 3)
    assert "± 2.5" in capsys.readouterr().out  # 4.303 x 1 / sqrt(3)


def _seeded(config: Any) -> Any:
    return finished(config, 10 + config.seeds.init)


def test_every_family_has_the_same_budget(tmp_path: Path, search: Search) -> None:
    text = SWEEP.replace("axes:", "axes:\n  backbone: [dit-tiny, dis-tiny, unet-tiny]").replace(
        "search: {", "search: {per: backbone, "
    )
    assert search(text, "search.trials=4") == 0
    families = [line["values"]["backbone"] for line in told(tmp_path)]
    assert {family: families.count(family) for family in families} == {"dit-tiny": 4, "dis-tiny": 4, "unet-tiny": 4}


def test_divergence_teaches_and_bugs_do_not(tmp_path: Path, search: Search) -> None:
    assert search(SWEEP, "search.trials=12", work=diverging_run) == 0
    states = {line["state"] for line in told(tmp_path) if line["failure"] == "diverged"}
    assert states == {"pruned"}
    text = SWEEP.replace("search:", "  seed: [13]\nsearch:").replace("lrs", "bugs")
    (tmp_path / "bugs.yaml").write_text(text, encoding="utf-8")
    assert main([str(tmp_path / "bugs.yaml"), f"results={tmp_path / 'b'}", "search.trials=2"], diverging_run) == 1
    lines = json.loads((tmp_path / "b" / "bugs" / "trials.json").read_text(encoding="utf-8"))
    assert {line["state"] for line in lines} <= {"fail", "pruned"}


def test_constraints_on_cost_keep_runs_from_being_done(tmp_path: Path, search: Search) -> None:
    text = SWEEP.replace("axes:", "axes:\n  backbone.depth: [1, 8]")
    assert search(text, "search.constraints={gmacs: 0.002}", "search.trials=12") == 0
    lines = told(tmp_path)
    refused = [line for line in lines if line["failure"]]
    assert {line["values"]["backbone.depth"] for line in refused} == {8}
    assert {line["values"]["backbone.depth"] for line in lines if not line["failure"]} == {1}
    assert len(counts(tmp_path)) == 12 - len(refused)


def test_several_objectives_end_in_a_front(tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(SWEEP, "search.objectives=[val_loss, gmacs]", "search.sampler=nsga2", "search.trials=20") == 0
    pairs = {str(line["values"]): tuple(line["objectives"].values()) for line in told(tmp_path)}
    points = [p for p in pairs.values() if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in pairs.values())]
    assert f"Pareto front, {len(points)} points" in capsys.readouterr().out


def test_hyperband_saves_four_tenths_of_the_steps_and_finds_the_same(tmp_path: Path) -> None:
    best, steps = {}, {}
    for pruner in ("none", "hyperband"):
        file, results = sweep_file(tmp_path, SWEEP), tmp_path / pruner
        words = [
            f"results={results}",
            "search.trials=40",
            f"search.pruner={pruner}",
            "overrides.train.validate_every=2",
        ]
        assert main([str(file), *words], curve_run) == 0
        lines = json.loads((results / "lrs" / "trials.json").read_text(encoding="utf-8"))
        best[pruner] = min(line["objectives"]["val_loss"] for line in lines if line["state"] == "complete")
        steps[pruner] = sum(len(path.read_text().splitlines()) for path in results.glob("runs/*/log.txt"))
    assert best["hyperband"] == best["none"]
    assert steps["none"] == 40 * STEPS
    assert steps["hyperband"] <= 0.6 * steps["none"]


def test_what_was_pruned_can_be_promoted(tmp_path: Path, search: Search) -> None:
    words = ["search.trials=12", "search.pruner=median", "overrides.train.validate_every=2"]
    assert search(SWEEP, *words, work=curve_run) == 0
    pruned = [line for line in told(tmp_path) if line["failure"] == "pruned"]
    assert pruned
    assert search(SWEEP, *words, "--retry=pruned", work=curve_run) == 0
    again = [line for line in told(tmp_path) if line["kind"] == "again"]
    assert [line["values"] for line in again] == [line["values"] for line in pruned]
    assert {line["state"] for line in again} == {"complete"}
    assert search(SWEEP, *words, "--retry=pruned", work=never) == 0


def test_wilcoxon_stops_between_seeds_where_every_seed_is_worse(tmp_path: Path, search: Search) -> None:
    text = SWEEP.replace("search:", "  seed: [0, 1, 2, 3, 4, 5, 6, 7]\nsearch:")
    assert search(text, "search.pruner=wilcoxon", "search.trials=8", work=_seeded_bowl) == 0
    lines = told(tmp_path)
    whole = [line for line in lines if line["state"] == "complete"]
    assert {line["state"] for line in lines} == {"complete", "pruned"}
    assert len(counts(tmp_path)) < 8 * 8
    floors = [bowl(line["values"]["train.lr"], line["values"]["train.weight_decay"]) for line in lines]
    best = floors.index(min(floors))
    assert lines[best] in whole  # what is best on every seed is never given up


def _seeded_bowl(config: Any) -> Any:
    return finished(config, bowl(config.train.lr, config.train.weight_decay) + config.seeds.init / 7)


def test_no_trial_is_begun_after_the_time_is_up(tmp_path: Path, search: Search) -> None:
    def sleepy(config: Any) -> Any:
        time.sleep(1.1)
        return bowl_run(config)

    assert search(SWEEP, "search.timeout=1", work=sleepy) == 0
    assert [line["state"] for line in told(tmp_path)] == ["complete", *["waiting"] * 5]


def test_the_file_of_a_search_is_written_as_it_was_read(tmp_path: Path) -> None:
    sweep = parse_sweep(SWEEP, "lrs")
    again = parse_sweep(to_yaml(sweep), "lrs")
    assert again == sweep
    assert read_sweep(sweep_file(tmp_path, SWEEP)) == sweep


def test_old_results_are_prior_trials_outside_the_budget(tmp_path: Path, search: Search) -> None:
    listed = SWEEP[: SWEEP.index("axes:")] + "axes: {train.lr: [0.001, 0.5], train.weight_decay: [0.25]}\n"
    (tmp_path / "old.yaml").write_text(listed, encoding="utf-8")
    assert main([str(tmp_path / "old.yaml"), f"results={tmp_path / 'r'}", "launcher=inline"], bowl_run) == 0
    assert search(SWEEP, "search.prior=true") == 0
    (prior,) = [line for line in told(tmp_path) if line["kind"] == "prior"]  # the other one lies outside the space
    assert prior["values"] == {"train.lr": 0.001, "train.weight_decay": 0.25}
    assert prior["objectives"] == {"val_loss": pytest.approx(0.30103**2 + 0.05**2, rel=1e-4)}
    assert len(told(tmp_path)) == 1 + 6
    assert search(SWEEP, "search.prior=true", work=never) == 0
    assert len(told(tmp_path)) == 1 + 6


def test_a_sweep_takes_each_familys_tuned_values(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SWEEP.replace("axes:", "axes:\n  backbone: [dit-tiny, dis-tiny]").replace(
        "{trials", "{per: backbone, trials"
    )
    assert search(text) == 0
    plain = "overrides: {train.images: 64}\naxes: {backbone: [dit-tiny, dis-tiny]}\n"
    (tmp_path / "fair.yaml").write_text(f"{plain}tuned: lrs\n", encoding="utf-8")
    assert main([str(tmp_path / "fair.yaml"), f"results={tmp_path / 'r'}", "launcher=inline"], bowl_run) == 0
    plan = json.loads((tmp_path / "r" / "fair" / "plan.json").read_text(encoding="utf-8"))
    assert plan["settings"] == "each tuned (6 trials)"
    for point in plan["points"]:
        own = [line for line in told(tmp_path) if line["values"]["backbone"] == point["values"]["backbone"]]
        best = min(own, key=lambda line: line["objectives"]["val_loss"])
        config = yaml.safe_load(RunDirectory(tmp_path / "r", point["run"]).config.read_text(encoding="utf-8"))
        assert config["train"]["lr"] == best["values"]["train.lr"]
    capsys.readouterr()
    (tmp_path / "fair.yaml").write_text(plain.replace("dis-tiny", "unet-tiny") + "tuned: lrs\n", encoding="utf-8")
    assert main([str(tmp_path / "fair.yaml"), f"results={tmp_path / 'r'}", "launcher=inline"], never) == 2
    assert "has no finished trial of backbone=unet-tiny" in capsys.readouterr().err
    (tmp_path / "fair.yaml").write_text(plain + "tuned: lr\n", encoding="utf-8")
    assert main([str(tmp_path / "fair.yaml"), f"results={tmp_path / 'r'}", "launcher=inline"], never) == 2
    assert "holds no search" in capsys.readouterr().err


def _of_size(config: RunConfig) -> State:
    """The better its loss, the more memory it took."""
    state, directory = bowl_run(config), RunDirectory.of(config)
    peak = 1000 / (1 + bowl(config.train.lr, config.train.weight_decay))
    row = Row(run=directory.identity, metric="peak_mib", value=peak, units="MiB", n=1, protocol="p")
    append_rows(directory.rows, [row])
    return state


TUNED = """\
overrides: {train.images: 64}
defaults: [backbone: dit-tiny, data: digits8, train: quick, sample: none]
tuned: lrs
axes: {seed: [0]}
launcher: inline
"""


def fair(tmp_path: Path, work: Work = bowl_run) -> int:
    (tmp_path / "fair.yaml").write_text(TUNED, encoding="utf-8")
    return main([str(tmp_path / "fair.yaml"), f"results={tmp_path / 'r'}"], work)


def test_what_is_outside_the_constraints_is_no_best(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(SWEEP, "search.trials=12", "search.constraints={peak_mib: 600}", work=_of_size) == 0
    lines = told(tmp_path)
    losses = [line["objectives"]["val_loss"] for line in lines]
    within = [loss for loss in losses if 1000 / (1 + loss) <= 600]
    assert 0 < len(within) < 12
    assert [line["feasible"] for line in lines] == [loss in within for loss in losses]
    best = losses.index(min(within))
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  trial "))
    assert first.startswith(f"  trial {best} ")
    found = analysed(load_rows(tmp_path / "r" / "lrs"), "val_loss")
    assert list(found["state"]) == ["complete" if loss in within else "infeasible" for loss in losses]
    assert fair(tmp_path) == 0
    plan = json.loads((tmp_path / "r" / "fair" / "plan.json").read_text(encoding="utf-8"))
    config = RunDirectory(tmp_path / "r", plan["points"][0]["run"]).config.read_text(encoding="utf-8")
    assert yaml.safe_load(config)["train"]["lr"] == lines[best]["values"]["train.lr"]


def test_where_nothing_is_within_the_constraints_that_is_said(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(SWEEP, "search.constraints={peak_mib: 1}", work=_of_size) == 0
    assert "none within the constraints" in capsys.readouterr().out
    assert fair(tmp_path, never) == 2
    assert "has no finished trial within the constraints" in capsys.readouterr().err
    assert search(SWEEP, "search.constraints={peak_mib: 2}", work=never) == 2
    assert "begun with constraints.peak_mib=1, now 2" in capsys.readouterr().err


def test_the_best_of_an_unfinished_search_is_not_taken(
    tmp_path: Path, search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    def sleepy(config: RunConfig) -> State:
        time.sleep(1.1)
        return bowl_run(config)

    assert search(SWEEP, "search.timeout=1", work=sleepy) == 0
    assert fair(tmp_path, never) == 2
    assert "an unfinished search, 5 of 6 trials are not done" in capsys.readouterr().err


def test_priors_are_judged_by_the_constraints(tmp_path: Path, search: Search) -> None:
    listed = SWEEP[: SWEEP.index("axes:")] + "axes: {train.lr: [0.001, 0.05], train.weight_decay: [0.25]}\n"
    (tmp_path / "old.yaml").write_text(listed, encoding="utf-8")
    assert main([str(tmp_path / "old.yaml"), f"results={tmp_path / 'r'}", "launcher=inline"], _of_size) == 0
    assert search(SWEEP, "search.prior=true", "search.constraints={peak_mib: 600}", work=_of_size) == 0
    priors = [line for line in told(tmp_path) if line["kind"] == "prior"]
    assert {line["values"]["train.lr"]: line["feasible"] for line in priors} == {0.001: False, 0.05: True}


def test_the_last_loss_of_a_pruned_trial_is_no_result(tmp_path: Path, search: Search) -> None:
    words = ["search.trials=12", "search.pruner=median", "overrides.train.validate_every=2"]
    assert search(SWEEP, *words, work=curve_run) == 0
    lines = told(tmp_path)
    pruned = [line for line in lines if line["state"] == "pruned"]
    assert pruned
    assert all(line["objectives"] == {} for line in pruned)
    rows = load_rows(tmp_path / "r" / "lrs")
    assert len(settings(rows, "val_loss")) == len(lines) - len(pruned)
    for line in pruned:
        line["objectives"] = {"val_loss": 2.0}  # as it was written once
    (tmp_path / "r" / "lrs" / "trials.json").write_text(json.dumps(lines), encoding="utf-8")
    assert len(settings(rows, "val_loss")) == len(lines) - len(pruned)


@pytest.mark.parametrize(
    ("options", "seeds"),
    [({}, 5), ({"p_threshold": 0.3}, 3), ({"n_startup_steps": 6}, 7), ({"p_threshold": 0.01}, 8)],
)
def test_the_least_p_value_of_wilcoxons_test_says_how_many_seeds(options: dict[str, float], seeds: int) -> None:
    """Against the test itself, of differences that all have one sign."""
    search = SearchConfig(pruner={"name": "wilcoxon", **options})
    assert least_seeds(search) == seeds
    level, start = options.get("p_threshold", 0.1), options.get("n_startup_steps", 2)
    for asked in range(2, 12):  # seeds done when it is asked
        p = wilcoxon(range(1, asked + 1), alternative="greater", zero_method="zsplit").pvalue
        assert (p < level and asked >= start) == (asked + 1 >= seeds)
