"""Training steps by replayed graphs, on a CPU by their stand-in."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models import build
from study import captured_step
from study.captured_step import check_capturable
from study.compose import resolve
from study.config import RunConfig
from study.run import main
from study.strict import ConfigError
from study.train import DivergedError, Trainer
from tests.study.graphs_stand_in import Graph, Stream, install, refuse
from tests.study.short_run import SMALL, equal_to, fail_at, finished

CPU = torch.device("cpu")
# A rate that float32 holds, as AdamW's kernel reads it on a device; and a norm that is always clipped: where reading
# it is free, it decides whether to clip, which the stand-in would record for good.
WORDS = ["backbone=dit-tiny", "train.batch=4", f"train.lr={2**-10}", "train.clip=1e-3", "train.ema=[0.9,0.05]"]


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Those captured so far; on a CPU."""
    monkeypatch.setattr(captured_step, "check_capturable", lambda *_: None)
    return install(monkeypatch)


def config(*words: str, by_graph: bool = True) -> RunConfig:
    return resolve([*WORDS, "train.images=1000", *words, *["machine.compile=graph"] * by_graph])


def trained(config: RunConfig, steps: int) -> tuple[Trainer, list[dict[str, float]]]:
    """And what it logged after every step."""
    trainer, curve = Trainer(config, CPU), []
    for _ in range(steps):
        trainer.step()
        curve.append(trainer.take_loss())
    return trainer, curve


def copied(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.tensors().items()}


def assert_equal(found: Trainer, expected: Trainer) -> None:
    """Weights, averages and moments, to the bit."""
    others = expected.tensors()
    assert {name: torch.equal(each, others[name]) for name, each in found.tensors().items()} == dict.fromkeys(
        others, True
    )


@pytest.mark.parametrize("name", ["dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny"])
def test_a_run_is_what_it_is_without(name: str, graphs: list[Graph]) -> None:
    words = [f"backbone={name}", "train.weight_decay=0.1", "train.flip=true"]
    replayed, curve = trained(config(*words), 6)
    launched, expected = trained(config(*words, by_graph=False), 6)
    assert_equal(replayed, launched)
    assert curve == expected
    assert [graph.replays for graph in graphs] == [5]  # one to check, and four of the six steps


@pytest.mark.parametrize("words", [("process=flow", "sample=flow"), ("process.variance=fixed_small", "train.clip=0")])
def test_another_process_and_nothing_clipped(words: tuple[str, ...]) -> None:
    assert_equal(trained(config(*words), 4)[0], trained(config(*words, by_graph=False), 4)[0])


def test_python_runs_three_times(graphs: list[Graph]) -> None:
    trainer, calls = Trainer(config(), CPU), []
    trainer.network.register_forward_hook(lambda *_: calls.append(trainer.images))
    for _ in range(6):
        trainer.step()
    assert calls == [0, 4, 4]  # as ever, as ever to compare with, to be captured
    assert len(Stream.entered) == 2
    assert {"aten._fused_adamw_.tensor_lr", "aten._foreach_lerp_.List"} <= graphs[0].operators


def test_rates_and_averages_follow_the_schedule() -> None:
    """No power of two: rates are rounded to float32."""
    words = ["train.lr=1e-3", "train.schedule=cosine", "train.warmup=12", "train.images=40"]
    replayed, curve = trained(config(*words), 10)
    launched, expected = trained(config(*words, by_graph=False), 10)
    assert curve[0]["lr"] < curve[2]["lr"] > 10 * curve[9]["lr"]
    for found, line in zip(curve, expected, strict=True):
        assert found == pytest.approx(line, rel=1e-4)
    pairs = zip([replayed.parameters, *replayed.averaged], [launched.parameters, *launched.averaged], strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_short_last_batch_is_launched(graphs: list[Graph]) -> None:
    replayed, curve = trained(config("train.images=22"), 6)
    launched, expected = trained(config("train.images=22", by_graph=False), 6)
    assert (replayed.images, curve) == (22, expected)
    assert_equal(replayed, launched)
    assert graphs[0].replays == 4  # of five whole batches three, and the check


def test_goes_on_exactly_after_a_restart(graphs: list[Graph]) -> None:
    whole, _ = trained(config(), 4)
    kept, facts = (copied(whole), copied(whole)), whole.facts()  # a trainer goes on in what it is given
    resumed = Trainer(config(), CPU)
    resumed.restore(kept[0], facts)
    for _ in range(4):
        resumed.step(), whole.step()
    assert_equal(resumed, whole)
    whole.restore(kept[1], facts)  # into memory that no graph knows
    for _ in range(4):
        whole.step()
    assert_equal(resumed, whole)
    assert len(graphs) == 3
    assert resumed.take_loss() == whole.take_loss()


def test_a_run_that_is_stopped_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, *SMALL, "backbone.width=16", "machine.compile=graph", "train.clip=1e-3"]
    disturbed = [*words, f"results={tmp_path / 'disturbed'}"]
    fail_at(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(disturbed) == 128 + signal.SIGTERM
    equal_to(finished([*words, f"results={tmp_path / 'whole'}"]), disturbed)


def test_tables_of_averages_hear_of_a_replay() -> None:
    trainer, _ = trained(config(), 3)
    before = [parameter._version for parameter in trainer.averaged[0]]
    trainer.step()
    assert all(parameter._version > version for parameter, version in zip(trainer.averaged[0], before, strict=True))


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        ("capture", "operation not permitted when stream is capturing"),
        ("weights", "a replay gives other weights"),
        ("loss", "a replay gives another loss"),
    ],
)
def test_goes_on_without_after_one_line(
    failure: str, why: str, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, launched = Trainer(config(), CPU), Trainer(config(by_graph=False), CPU)
    spoils: dict[str, Callable[[], object]] = {
        "weights": lambda: trainer.parameters[0].mul_(1.01),
        "loss": lambda: trainer._loss_sum.mul_(1.1),
    }
    if failure == "capture":
        monkeypatch.setattr(torch.cuda, "graph", refuse)
    else:
        monkeypatch.setattr(Graph, "spoil", staticmethod(spoils[failure]))
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            trainer.step(), launched.step()
    assert [record.getMessage() for record in caplog.records] == [
        f"the step is not captured as a CUDA graph, training goes on without: {why}"
    ]
    assert_equal(trainer, launched)
    assert len(graphs) == 1


def test_errors_of_the_network_are_its_own(caplog: pytest.LogCaptureFixture) -> None:
    trainer, _ = trained(config(), 1)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    trainer.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.step()
    assert not caplog.records


def test_divergence_is_noted_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, where no number is read in a step: the note is part of the graph."""
    trainer = Trainer(config(), CPU)
    monkeypatch.setattr("study.train.math.isfinite", lambda number: False)
    for _ in range(4):
        trainer.step()
    with torch.no_grad():
        trainer.parameters[0].fill_(torch.nan)
    with pytest.raises(DivergedError, match="not finite in step 5, 20 images into training"):
        trainer.step()


def test_the_script_for_a_gpu_compares_weights() -> None:
    from benchmarks.gpu_graphs import training

    calls, facts = training("dit-tiny", ("false", "graph"), CPU)
    assert list(calls) == ["machine.compile=false", "machine.compile=graph"]
    assert facts["machine.compile=graph"]["verdict"] == "within"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("machine.micro_batch=2", r"machine\.micro_batch=2 is not valid: must be 0 .* with compile=graph"),
        ("machine.shard=true", r"machine\.shard=True is not valid: must be false"),
        ("machine.checkpoint_activations=true", r"machine\.checkpoint_activations=True is not valid: must be false"),
        ("train.precision=fp16", r"machine\.compile='graph' is not valid: must be false or true with train\.precision"),
    ],
)
def test_refuses_what_does_not_go_together(words: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config(words)


@pytest.mark.parametrize(
    ("name", "fields", "ranks", "why"),
    [
        ("dit-tiny", {}, 1, "must be false or true on cpu: graphs are CUDA's"),
        ("dit-tiny", {}, 2, "must be false or true on 2 ranks"),
        ("unet-tiny", {"dropout": 0.1}, 1, "must be false with dropout"),
        ("dis-tiny", {"drop_path": 0.1}, 1, "must be false with dropout"),
    ],
)
def test_refuses_what_a_graph_cannot_hold(name: str, fields: dict[str, float], ranks: int, why: str) -> None:
    with pytest.raises(ValueError, match=rf"machine\.compile='graph' is not valid: {why}"):
        check_capturable(build(name, **fields), CPU, ranks)


def test_a_command_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captured_step, "check_capturable", check_capturable)
    words = ["backbone=dit-tiny", "machine.compile=graph", "machine.device=cpu", f"results={tmp_path / 'none'}"]
    assert main(words) == 2
    assert "machine.compile='graph' is not valid: must be false or true on cpu" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
