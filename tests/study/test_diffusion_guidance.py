"""Classifier-free guidance: what the network is asked, when, and what comes of the answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.dit import DiT, DiTConfig
from study.diffusion import SamplerConfig, guided
from study.process.guidance import combine, guided_channels


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dit() -> DiT:
    torch.manual_seed(0)
    model = DiT(DiTConfig(size=(4, 4), P=2, channels=4, width=16, depth=1, heads=2, classes=5)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture
def batches(dit: DiT) -> Any:
    """Batch sizes and labels the network is called with."""
    seen: list[list[int]] = []
    hook = dit.register_forward_pre_hook(lambda module, args: seen.append(args[2].tolist()))
    yield seen
    hook.remove()


X = randn(3, 4, 4, 4)
LABELS = torch.tensor([0, 3, 1])


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_network(dit: DiT, batches: list[list[int]]) -> None:
    out = guided(dit, LABELS, SamplerConfig(guidance=1.0))(X, 500.0)
    assert batches == [[0, 3, 1]]
    assert torch.equal(out, dit(X, torch.full((3,), 500.0), LABELS))


@torch.no_grad()
def test_guidance_asks_both_halves_in_one_batch(dit: DiT, batches: list[list[int]]) -> None:
    sampler = SamplerConfig(guidance=3.0, guidance_channels="all")
    out = guided(dit, LABELS, sampler)(X, 500.0)
    assert batches == [[0, 3, 1, 5, 5, 5]]
    t = torch.full((3,), 500.0)
    cond, uncond = dit(X, t, LABELS), dit(X, t, torch.full_like(LABELS, 5))
    torch.testing.assert_close(out[:, :4], uncond[:, :4] + 3 * (cond - uncond)[:, :4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, 4:], cond[:, 4:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_interval_covers_its_ends_and_nothing_else(dit: DiT, batches: list[list[int]]) -> None:
    denoise = guided(dit, LABELS, SamplerConfig(guidance=2.0, guidance_from=200, guidance_to=700))
    for t in (199.0, 200.0, 450.0, 700.0, 701.0):
        denoise(X, t)
    assert [len(labels) for labels in batches] == [3, 6, 6, 6, 3]


@given(guidance=st.floats(0, 10), channels=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_combination_is_linear_and_leaves_the_rest_conditional(guidance: float, channels: int, seed: int) -> None:
    cond, uncond = randn(2, 8, 2, 2, seed=seed), randn(2, 8, 2, 2, seed=seed + 100)
    out = combine(cond, uncond, guidance, channels)
    expected = (1 - guidance) * uncond + guidance * cond
    torch.testing.assert_close(out[:, :channels], expected[:, :channels], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[:, channels:], cond[:, channels:])


def test_guided_channels_never_exceed_the_image() -> None:
    first3, every = SamplerConfig(), SamplerConfig(guidance_channels="all")
    assert [guided_channels(first3, c) for c in (1, 3, 4)] == [1, 3, 3]
    assert [guided_channels(every, c) for c in (1, 3, 4)] == [1, 3, 4]


def test_guidance_needs_a_null_class() -> None:
    unconditional = DiT(DiTConfig(size=(4, 4), P=2, channels=1, width=16, depth=1, heads=2, classes=0))
    with pytest.raises(ValueError, match=r"guidance=2\.0.*null class"):
        guided(unconditional, None, SamplerConfig(guidance=2.0))
