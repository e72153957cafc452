"""Tables kept while evaluating are used when they may be, and never when anything has changed."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.ssm import s4d as module
from models.ssm.s4d import S4D


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths for which tables were made, in order."""
    lengths: list[int] = []
    make = module.s4d_tables

    def counted(*inputs: Any) -> list[Tensor]:
        lengths.append(inputs[5])
        return make(*inputs)

    monkeypatch.setattr(module, "s4d_tables", counted)
    return lengths


def layer(join: str = "concat") -> S4D:
    torch.manual_seed(0)
    return S4D(3, 8, join=join).eval()


def sequence(length: int = 70, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, length, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


def uncached(s4d: S4D, u: Tensor) -> Tensor:
    """The answer by the path that training takes, which keeps nothing."""
    return S4D.forward(copy.deepcopy(s4d).train(), u).detach()


def assert_fresh(s4d: S4D, u: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(s4d(u), uncached(s4d, u))


@pytest.mark.parametrize("length", [12, 70])
def test_unchanged_parameters_make_tables_once(length: int, made: list[int]) -> None:
    s4d, u = layer(), sequence(length)
    for _ in range(3):
        assert_fresh(s4d, u)
    with torch.inference_mode():
        s4d(u)
    assert made == [length]


def through_data(s4d: S4D) -> None:
    """No version counter sees this, as when an exponential moving average is copied in."""
    s4d.C.data.copy_(torch.randn_like(s4d.C))


def through_data_of_one_entry(s4d: S4D) -> None:
    s4d.A_imag.data[1, 2, 3] += 1


def new_data(s4d: S4D) -> None:
    s4d.log_dt.data = s4d.log_dt.data - 1


def in_place(s4d: S4D) -> None:
    with torch.no_grad():
        s4d.D.add_(1)


def optimiser_step(s4d: S4D) -> None:
    s4d(sequence()).square().sum().backward()
    torch.optim.AdamW(s4d.parameters(), lr=0.1, fused=True).step()


def load(s4d: S4D) -> None:
    torch.manual_seed(5)
    s4d.load_state_dict(S4D(3, 8, join=s4d.join).state_dict())


def load_by_assignment(s4d: S4D) -> None:
    torch.manual_seed(5)
    s4d.load_state_dict(S4D(3, 8, join=s4d.join).state_dict(), assign=True)


def average_in(s4d: S4D) -> None:
    torch._foreach_lerp_([p.data for p in s4d.parameters()], [torch.randn_like(p) for p in s4d.parameters()], 0.5)


def optimiser_step_alone(s4d: S4D) -> None:
    for parameter in s4d.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(s4d.parameters(), lr=0.1).step()


@torch.no_grad()
def average_in_without_gradients(s4d: S4D) -> None:
    torch._foreach_lerp_(list(s4d.parameters()), [torch.randn_like(p) for p in s4d.parameters()], 0.5)


def replaced(s4d: S4D) -> None:
    s4d.C = nn.Parameter(torch.randn_like(s4d.C))


def through_an_alias(s4d: S4D) -> None:
    s4d.log_A_real.detach().numpy()[...] = 0.3


def train_a_step_and_return(s4d: S4D) -> None:
    s4d.train()
    optimiser_step(s4d)
    s4d.eval()


CHANGES = [
    through_data,
    through_data_of_one_entry,
    new_data,
    in_place,
    optimiser_step,
    load,
    load_by_assignment,
    average_in,
    average_in_without_gradients,
    optimiser_step_alone,
    replaced,
    through_an_alias,
    train_a_step_and_return,
]


@pytest.mark.parametrize("join", ["concat", "sum"])
@pytest.mark.parametrize("length", [12, 70])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_is_never_missed(
    change: Callable[[S4D], None], length: int, join: str, made: list[int]
) -> None:
    s4d, u = layer(join), sequence(length)
    with torch.no_grad():
        before = s4d(u)
    change(s4d)
    assert_fresh(s4d, u)
    with torch.no_grad():
        assert (s4d(u) - before).abs().max() > 1e-4, "the change did not change anything"
    assert made == [length, length]


def test_another_length_dtype_or_device_makes_other_tables(made: list[int]) -> None:
    s4d = layer()
    for u in (sequence(70), sequence(33), sequence(70), sequence(70, torch.float64)):
        assert_fresh(s4d, u)
    assert s4d(sequence(70, torch.float64)).dtype == torch.float64
    s4d.double()
    assert_fresh(s4d, sequence(70, torch.float64))
    assert made == [70, 33, 70, 70, 70]
    s4d.to("meta")
    with torch.no_grad():
        assert s4d(sequence().to("meta")).is_meta


def test_moving_forgets_at_once() -> None:
    s4d = layer()
    with torch.no_grad():
        s4d(sequence())
    assert s4d._tables._entry is not None
    for forget in (s4d.cpu, s4d.eval, s4d.train, lambda: s4d.load_state_dict(s4d.state_dict())):
        s4d.eval()
        with torch.no_grad():
            s4d(sequence())
        forget()
        assert s4d._tables._entry is None


def test_on_an_accelerator_counters_and_addresses_tell(monkeypatch: pytest.MonkeyPatch, made: list[int]) -> None:
    """Contents are not compared there; what is left still sees everything but `p.data` written in place."""
    monkeypatch.setattr("models.ssm.cache.torch.equal", lambda *_: True)
    for change in (
        c for c in CHANGES if c not in (through_data, through_data_of_one_entry, average_in, through_an_alias)
    ):
        s4d = layer()
        with torch.no_grad():
            s4d(sequence())
        change(s4d)
        assert_fresh(s4d, sequence())
    s4d.C.data.zero_()
    s4d.eval()  # what makes such a write seen on every device
    assert_fresh(s4d, sequence())


def test_gradients_and_training_bypass_the_cache(made: list[int]) -> None:
    s4d = layer()
    s4d(sequence()).sum().backward()
    assert s4d.C.grad is not None
    u = sequence().requires_grad_()
    s4d.requires_grad_(False)(u).sum().backward()
    assert u.grad is not None
    with torch.no_grad():
        s4d.train()(sequence())
    assert made == []


def test_copies_share_nothing(made: list[int]) -> None:
    s4d, u = layer(), sequence()
    with torch.no_grad():
        s4d(u)
    twin = copy.deepcopy(s4d)
    assert twin._tables._entry is None
    through_data(twin)
    assert_fresh(twin, u)
    assert_fresh(s4d, u)
    assert made == [70, 70]


def test_a_saved_module_carries_no_tables() -> None:
    s4d, sizes = layer(), []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(s4d, file)
        sizes.append(file.tell())
        with torch.no_grad():
            s4d(sequence(2000))
    assert sizes[0] == sizes[1]
    assert set(s4d.state_dict()) == {name for name, _ in s4d.named_parameters()}


def test_parameters_made_in_inference_mode_are_not_cached(made: list[int]) -> None:
    with torch.inference_mode():
        s4d = layer()
        s4d(sequence())
        s4d.C.mul_(2)
        torch.testing.assert_close(s4d(sequence()), s4d.train()(sequence()))
    assert made == [70, 70]
