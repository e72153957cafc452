"""The opaque operators refuse the derivatives that they do not have, in one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp

from models.ssm.s4d import S4D
from models.ssm.selective_scan import selective_scan

SEQUENCE = torch.randn(2, 9, 3)


def by_sequence(layer: S4D) -> None:
    jvp(layer, (SEQUENCE,), (SEQUENCE,))


def by_parameter(layer: S4D) -> None:
    jvp(lambda D: functional_call(layer, {"D": D}, SEQUENCE), (layer.D.detach(),), (torch.ones_like(layer.D),))


def by_dual_number(layer: S4D) -> None:
    with forward_ad.dual_level():
        layer(forward_ad.make_dual(SEQUENCE, SEQUENCE))


@pytest.mark.parametrize("differentiate", [by_sequence, by_parameter, by_dual_number])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_s4d_refuses_tangents(differentiate: Callable[[S4D], None], training: bool, frozen: bool) -> None:
    layer = S4D(3, 4).train(training).requires_grad_(not frozen)
    with pytest.raises(NotImplementedError, match=r"^ssm::s4d.* has no forward-mode derivative: use reverse mode"):
        differentiate(layer)


@pytest.mark.parametrize("index", range(8))
def test_the_scan_refuses_tangents_of_any_input(index: int) -> None:
    u, delta, z = torch.rand(3, 2, 6, 9)
    B, C = torch.rand(2, 2, 4, 9)
    inputs = [u, delta, -torch.rand(6, 4), B, C, torch.rand(6), z, torch.rand(6)]

    def of_one(x: Tensor) -> Tensor:
        return selective_scan(*(x if i == index else other for i, other in enumerate(inputs)))

    with pytest.raises(NotImplementedError, match=r"^ssm::selective_scan has no forward-mode derivative"):
        jvp(of_one, (inputs[index],), (inputs[index],))


def test_duals_of_other_inputs_do_no_harm() -> None:
    with forward_ad.dual_level():
        assert S4D(3, 4)(SEQUENCE).shape == (2, 9, 6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_mapped_layer_equals_a_loop(training: bool) -> None:
    layer, stacked = S4D(3, 4).train(training), torch.randn(4, 2, 9, 3)
    torch.testing.assert_close(torch.func.vmap(layer)(stacked), torch.stack([layer(u) for u in stacked]))


def scan(u: Tensor) -> Tensor:
    rates = torch.linspace(0.1, 1, 2 * 4 * 9).view(2, 4, 9)
    return selective_scan(u, u.abs(), -torch.ones(3, 4), rates, rates)


@pytest.mark.parametrize("operator", ["s4d", "selective_scan"])
@pytest.mark.parametrize("transform", [grad, jacrev])
def test_transforms_are_refused(operator: str, transform: Callable[..., Any]) -> None:
    form = {"s4d": S4D(9, 4), "selective_scan": scan}[operator]
    with pytest.raises(NotImplementedError, match=rf"^ssm::{operator} is not for torch.func"):
        transform(lambda x: form(x).sum())(SEQUENCE.mT.contiguous())


@pytest.mark.parametrize("operator", ["s4d", "selective_scan"])
def test_second_derivatives_are_refused(operator: str) -> None:
    form = {"s4d": S4D(9, 4), "selective_scan": scan}[operator]
    x = SEQUENCE.mT.clone().requires_grad_()
    (first,) = torch.autograd.grad(form(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"^ssm::{operator} has no second derivative"):
        first.sum().backward()
