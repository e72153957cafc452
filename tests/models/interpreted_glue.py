"""The fused glue on a CPU: run by `test_glue.py` where TRITON_INTERPRET is set before any import."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

from models.layers import glue
from models.layers.modulation import modulate

assert os.environ.get("TRITON_INTERPRET") == "1"

SHAPES = [(1, 1, 1), (2, 5, 7), (3, 33, 64), (2, 64, 130)]


def inputs(batch: int, length: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two sequences, and two conditions that are chunks of one projection, in float64."""
    x, branch = (3 + torch.randn(batch, length, width, dtype=torch.float64) for _ in range(2))
    first, second = torch.randn(batch, 3 * width, dtype=torch.float64).chunk(3, dim=1)[1:]
    return x, branch, first, second


def compare(actual: Tensor, expected: Tensor, leaves: list[Tensor], wide: list[Tensor]) -> None:
    grad = torch.randn_like(expected)
    pairs = zip(
        [actual, *torch.autograd.grad(actual, leaves, grad.to(actual.dtype))],
        [expected, *torch.autograd.grad(expected, wide, grad)],
        strict=True,
    )
    for got, wanted in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=5e-6 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_and_modulation(shape: tuple[int, int, int]) -> None:
    x, _, shift, scale = inputs(*shape)
    wide = [t.requires_grad_() for t in (x, shift, scale)]
    leaves = [t.detach().float().requires_grad_() for t in wide]
    norm = nn.LayerNorm(shape[2], elementwise_affine=False, eps=1e-6)
    if shape[2] == 1:  # nothing but eps is left of one number's deviation
        norm.eps = 1.0
    compare(glue.norm_modulate(*leaves, norm.eps), modulate(norm(x), shift, scale), leaves, wide)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gate_and_sum(shape: tuple[int, int, int]) -> None:
    x, branch, gate, _ = inputs(*shape)
    wide = [t.requires_grad_() for t in (x, gate, branch)]
    leaves = [t.detach().float().requires_grad_() for t in wide]
    compare(glue.gated_sum(*leaves), x + gate[:, None] * branch, leaves, wide)


def test_sequences_may_be_held_in_any_way() -> None:
    x, branch, shift, scale = (t.float() for t in inputs(2, 6, 8))
    odd, plain = x.mT.contiguous().mT, x.contiguous()
    assert torch.equal(glue.norm_modulate(odd, shift, scale, 1e-6), glue.norm_modulate(plain, shift, scale, 1e-6))
    assert torch.equal(glue.gated_sum(odd, shift, branch), glue.gated_sum(plain, shift, branch))


def test_autocast_gives_what_the_next_product_reads() -> None:
    x, _, shift, scale = (t.float() for t in inputs(2, 6, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert glue.norm_modulate(x, shift.bfloat16(), scale.bfloat16(), 1e-6).dtype == torch.bfloat16
        assert glue.gated_sum(x, shift.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_operators_are_registered_soundly() -> None:
    x, branch, shift, scale = (t.detach().float().contiguous().requires_grad_() for t in inputs(2, 6, 8))
    torch.library.opcheck(glue.norm_modulate_forward, (x, shift, scale, 1e-6, torch.float32))
    torch.library.opcheck(glue.gated_sum_forward, (x, shift, branch))
