"""The fused glue on a CPU: run by `test_glue.py` where TRITON_INTERPRET is set before any import."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp

from benchmarks import gpu_glue
from models.layers import glue, modulation
from models.layers.modulation import modulate
from tests.models.triton_tools import Guarded

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


@pytest.mark.parametrize("batch", [1, 3])
def test_one_condition_may_be_that_of_all_images(batch: int) -> None:
    x, branch, _, _ = inputs(batch, 5, 8)
    wide = [t.requires_grad_() for t in (x, *(torch.randn(1, 8, dtype=torch.float64) for _ in range(2)))]
    leaves = [t.detach().float().requires_grad_() for t in wide]
    norm = nn.LayerNorm(8, elementwise_affine=False, eps=1e-6)
    compare(glue.norm_modulate(*leaves, norm.eps), modulate(norm(x), *wide[1:]), leaves, wide)
    wide[2], leaves[2] = branch.requires_grad_(), branch.detach().float().requires_grad_()
    compare(glue.gated_sum(*leaves), x + wide[1][:, None] * branch, leaves, wide)


@pytest.mark.parametrize("name", sorted(name for name in vars(glue) if name.endswith("_kernel")))
def test_kernels_start_on_the_device_of_their_sequence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, name, guard := Guarded(getattr(glue, name), monkeypatch))
    x, branch, shift, scale = (t.float().requires_grad_() for t in inputs(2, 5, 8))
    (glue.norm_modulate(x, shift, scale, 1e-6) + glue.gated_sum(x, shift, branch)).sum().backward()
    assert guard.launches == 1


def test_the_statistics_alone_ask_for_no_gradient() -> None:
    """Gradients that nobody asked for are not made up of zeros."""
    x, _, shift, scale = (t.detach().float().contiguous().requires_grad_() for t in inputs(2, 5, 8))
    _, mean, _ = glue.norm_modulate_forward(x, shift, scale, 1e-6, torch.float32)
    (grad,) = torch.autograd.grad(mean.sum(), x, allow_unused=True)
    assert grad is None


def by_jvp(form: Callable[..., Tensor], given: list[Tensor], index: int) -> None:
    jvp(lambda t: form(*given[:index], t, *given[index + 1 :]), (given[index],), (given[index],))


def by_dual_number(form: Callable[..., Tensor], given: list[Tensor], index: int) -> None:
    with forward_ad.dual_level():
        form(*given[:index], forward_ad.make_dual(given[index], given[index]), *given[index + 1 :])


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return glue.norm_modulate(x, shift, scale, 1e-6)


def of(form: Callable[..., Tensor]) -> list[Tensor]:
    x, branch, first, second = (t.float() for t in inputs(2, 5, 8))
    return [x, first, second] if form is norm_modulate else [x, first, branch]


@pytest.mark.parametrize("form", [norm_modulate, glue.gated_sum])
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("differentiate", [by_jvp, by_dual_number])
def test_tangents_are_refused(form: Callable[..., Tensor], index: int, differentiate: Callable[..., None]) -> None:
    with pytest.raises(NotImplementedError, match=rf"^glue::{form.__name__} has no forward-mode derivative: use rev"):
        differentiate(form, of(form), index)


@pytest.mark.parametrize("form", [norm_modulate, glue.gated_sum])
def test_second_derivatives_are_refused(form: Callable[..., Tensor]) -> None:
    given = [t.requires_grad_() for t in of(form)]
    (first,) = torch.autograd.grad(form(*given).square().sum(), given[1], create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"^glue::{form.__name__} has no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("form", [norm_modulate, glue.gated_sum])
def test_transforms_are_refused(form: Callable[..., Tensor]) -> None:
    x, *others = of(form)
    with pytest.raises(NotImplementedError, match=rf"^glue::{form.__name__} is not for torch.func"):
        torch.func.grad(lambda t: form(t, *others).sum())(x)


@pytest.mark.parametrize(("half", "limit"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-3)])
def test_close_as_the_script_measures_it(half: torch.dtype, limit: float) -> None:
    """The interpreter cuts bf16 off where a GPU rounds: twice the error."""
    for line in gpu_glue.errors(half, torch.device("cpu"), 64):
        assert all(float(error) <= limit for error in line["y and gradients"].split(", ")), line


def test_networks_compute_the_same_with_and_without_it() -> None:
    lines = list(gpu_glue.network_errors(torch.device("cpu")))
    assert [(line["case"], line["verdict"]) for line in lines] == [(n, "within") for n in gpu_glue.NETWORKS], lines
    assert all(float(line["y"]) > 0 for line in lines), "both ways were the same one"


def test_a_norm_with_a_weight_of_its_own_is_refused() -> None:
    x, _, shift, scale = (t.float() for t in inputs(2, 5, 8))
    with gpu_glue.glued(True), pytest.raises(AssertionError, match="no weight and bias"):
        modulation.norm_modulate(x, nn.LayerNorm(8), shift, scale)
