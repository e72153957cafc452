"""Sampling by replayed graphs, on a CPU by their stand-in."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

import study.sample
from models import Denoiser, build
from study.captured import CapturedDenoiser, captured
from study.diffusion import GaussianConfig, SamplerConfig, make_process
from study.sample import Samples, sample
from tests.study.graphs_stand_in import Graph, Stream, install, refuse, spoil

CPU = torch.device("cpu")
TINY = ("dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny")


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Those captured so far; on a CPU."""
    return install(monkeypatch)


def network(name: str = "dit-tiny") -> Denoiser:
    torch.manual_seed(0)
    made = build(name)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval()


def inputs(batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, 8, 8, generator=source)
    return x, torch.full((batch,), 100.0 * seed + 1), torch.randint(10, (batch,), generator=source)


def drawn(denoiser: Denoiser, precision: str = "fp32") -> Samples:
    """Five in batches of three and two, guided in the middle of the way only: four shapes of inputs."""
    sampler = SamplerConfig("ddim", "6", guidance=2.0, guidance_from=300, guidance_to=700)
    process = make_process(GaussianConfig(variance="fixed_small"))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        return sample(denoiser, process, sampler, range(5), batch_size=3, precision=precision)


def by_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study.sample, "captured", CapturedDenoiser)


@pytest.mark.parametrize("name", TINY)
def test_samples_are_those_of_the_network(name: str, graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = network(name)
    expected = drawn(denoiser)
    by_replay(monkeypatch)
    assert torch.equal(drawn(denoiser).images, expected.images)
    assert len(graphs) == 4  # 3 and 2 images, with guidance and without
    assert len(Stream.entered) == 4  # each warmed up once
    assert [graph.pool_given for graph in graphs] == [None, (0, 1), (0, 1), (0, 1)]
    evaluations = [graph.replays - 1 for graph in graphs]  # but for the check
    assert sum(evaluations) == 2 * 6 - 4  # the first of each shape is the network's own


def test_python_runs_twice_per_shape(graphs: list[Graph]) -> None:
    denoiser, calls = network(), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    denoiser.register_forward_hook(count)
    replayed = CapturedDenoiser(denoiser, CPU)
    for seed in range(4):
        replayed(*inputs(2, seed))
        replayed(*inputs(3, seed))
    assert calls == 4
    assert [graph.replays for graph in graphs] == [4, 4]


def test_every_input_is_read_anew_and_outputs_stay() -> None:
    denoiser = network()
    replayed = CapturedDenoiser(denoiser, CPU)
    x, t, y = inputs(2, 1)
    replayed(x, t, y)
    others = [(x + 1, t, y), (x, t + 500, y), (x, t, (y + 1) % 10), (x, t, y)]
    outputs = [replayed(*each) for each in others]
    with torch.no_grad():
        for each, output in zip(others, outputs, strict=True):
            assert torch.equal(output, denoiser(*each))
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])


def test_given_tensors_are_left_alone() -> None:
    given = inputs(2, 1)
    kept = [value.clone() for value in given]
    replayed = CapturedDenoiser(network(), CPU)
    replayed(*given)
    replayed(*inputs(2, 2))
    assert all(torch.equal(value, before) for value, before in zip(given, kept, strict=True))


def test_tables_are_made_before_the_capture(graphs: list[Graph]) -> None:
    replayed = CapturedDenoiser(network("diffussm-tiny"), CPU)
    replayed(*inputs(2, 1))
    core = {name for name in graphs[0].operators if name.startswith("ssm")}
    assert core == {"ssm.s4d_apply.default"}


def test_under_autocast(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = network()
    expected = drawn(denoiser, "bf16")
    by_replay(monkeypatch)
    assert torch.equal(drawn(denoiser, "bf16").images, expected.images)
    assert any(output.dtype == torch.bfloat16 for *_, outputs in graphs[0].tape.calls for output in outputs)


@pytest.mark.parametrize(
    ("where", "failure", "why"),
    [
        (torch.cuda, "graph", "operation not permitted when stream is capturing"),
        (Graph, "spoil", "a replay gives another output than the network"),
    ],
)
def test_goes_on_without_after_one_line(
    where: Any, failure: str, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    denoiser = network()
    expected = drawn(denoiser)
    by_replay(monkeypatch)
    monkeypatch.setattr(where, failure, refuse if failure == "graph" else staticmethod(spoil))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(drawn(denoiser).images, expected.images)
    assert [record.getMessage() for record in caplog.records] == [
        f"the network is not captured as a CUDA graph, sampling goes on without: {why}"
    ]
    assert len(Graph.made) == 1


def test_a_wrong_call_is_refused_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    x, t, y = inputs(2, 1)
    with pytest.raises(ValueError, match=r"t\.shape"):
        CapturedDenoiser(network(), CPU)(x, t[:1], y)
    assert not caplog.records


def test_an_output_that_is_not_finite_is_captured(graphs: list[Graph]) -> None:
    """A network that has diverged is not a capture that has failed."""
    denoiser = network()
    with torch.no_grad():
        next(denoiser.parameters()).fill_(torch.nan)
    replayed = CapturedDenoiser(denoiser, CPU)
    assert replayed(*inputs(2, 1)).isnan().any()
    assert replayed(*inputs(2, 2)).isnan().any()
    assert graphs[0].replays == 2


def test_only_on_cuda() -> None:
    denoiser = network()
    assert captured(denoiser, CPU) is denoiser
    assert isinstance(captured(denoiser, torch.device("cuda")), CapturedDenoiser)
