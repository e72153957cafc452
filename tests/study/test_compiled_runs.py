"""Compiled runs: stopped and resumed, and on two ranks."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from study.compose import resolve
from study.distributed import Ranks
from study.run import main
from study.strict import ConfigError
from study.train import Trainer, compiled
from tests.study.ranked import finish, start
from tests.study.short_run import SMALL, equal_to, fail_at, finished

COMPILED = [*SMALL, "train.images=20", "machine.compile=true", "log.checkpoint_every=100"]


def test_a_compiled_run_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine, what is compiled again computes the same bits."""
    words = [*COMPILED, f"results={tmp_path / 'disturbed'}"]
    fail_at(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(words) == 128 + signal.SIGTERM
    torch.compiler.reset()
    equal_to(finished([*COMPILED, f"results={tmp_path / 'whole'}"]), words)


@pytest.mark.parametrize(("word", "mode"), [("true", None), ("reduce-overhead",) * 2, ("max-autotune",) * 2])
def test_the_compiler_is_told_how(word: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(torch, "compile", lambda network, **how: told.append(how) or network)
    Trainer(resolve(["backbone=dit-tiny", f"machine.compile={word}"]), torch.device("cpu"))
    assert told == [{"mode": mode}]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("machine.micro_batch=8", r"machine\.micro_batch=8 is not valid: must be 0 \(the whole batch\) with compile="),
        ("machine.compile=overhead", r"machine\.compile='overhead' is not valid.*did you mean reduce-overhead"),
    ],
)
def test_refuses_what_cannot_be_replayed(word: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve(["backbone=dit-tiny", "machine.compile=reduce-overhead", word])


def test_whole_steps_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "compile")
    network = torch.nn.Linear(1, 1)
    assert compiled(network, "graph") is compiled(network, False) is network


def compiled_steps(ranks: Ranks) -> None:
    """Traced and differentiated as always, but not translated to machine code, which takes a minute."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    words = ["backbone=dit-tiny", "backbone.depth=1", "train.batch=6", "train.lr=1e-4"]
    shared = Trainer(resolve([*words, "machine.compile=true"]), torch.device("cpu"), ranks)
    single = Trainer(resolve(words), torch.device("cpu"))
    shared.meet()
    for _ in range(3):
        shared.step()
        single.step()
    assert shared.take_loss() == pytest.approx(single.take_loss(), rel=1e-4)  # compiled and not: other roundings


def test_two_compiled_ranks_follow_one_that_is_not() -> None:
    assert finish(start(2, compiled_steps), seconds=300) == [0, 0]
