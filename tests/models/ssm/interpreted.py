"""The Triton kernels on a CPU, in float32: run by `test_fused.py` where TRITON_INTERPRET is set before any import.

The interpreter's product of bf16 tiles is wrong, so half precision is left to `benchmarks/gpu.py` on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from benchmarks.exactness import LENGTHS, Case, computed, errors, excess, forced, problem, textbook
from models.ssm.forms import Form
from models.ssm.s4d import S4D
from tests.models.ssm.test_core import LAYOUTS
from tests.models.triton_tools import Guarded

assert os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def found(case: Case) -> list[str]:
    p = problem(case, torch.float32)
    return excess(errors(Form.FUSED, p, textbook(p)), torch.float32)


def test_memory_is_poisoned() -> None:
    assert torch.empty(3).isnan().all()
    assert torch.ones(3).new_empty(2, 2).isnan().all()


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", LENGTHS[:4])
def test_short_sequences(length: int, directions: int, streams: int) -> None:
    assert found(Case(length, directions=directions, streams=streams)) == []


LONG = [
    Case(1024, 1, 3, 4, 2, 2),
    Case(1024, 1, 1, 32, 2, 1),
    Case(4096, 1, 1, 32, 2, 1),
    Case(16384, 1, 1, 4, 1, 1),
]


@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_sequences(case: Case) -> None:
    assert found(case) == []


@pytest.mark.parametrize("batch", [1, 17, 64, 70])
@pytest.mark.parametrize("modes", [2, 20])
def test_any_batch_and_state(batch: int, modes: int) -> None:
    """Blocks of 16, 32 and 64 rows, one of them and several; padded modes and not."""
    assert found(Case(70, batch, 1, modes, 2, 1)) == []


@pytest.mark.parametrize("streams", [1, 2])
def test_several_blocks_of_rows_in_several_channels(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every channel and block of rows has its own place in the scratch: none is left unwritten.

    Programs run one after the other here, so that two of them in one place would not disturb each other.
    """
    from models.ssm import fused

    new, made = fused._scratch, list[torch.Tensor]()

    def kept(x: torch.Tensor, rows: int, n: int) -> torch.Tensor:
        made.append(new(x, rows, n))
        return made[-1]

    monkeypatch.setattr(fused, "_scratch", kept)
    assert found(Case(70, 70, 3, 2, 2, streams)) == []
    assert len(made) == 3 - streams
    assert not any(scratch.isnan().any() for scratch in made)


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("modes", [3, 32])
def test_tables_and_chain_rule_are_those_of_the_plain_form(directions: int, streams: int, modes: int) -> None:
    """In float64, with phases of many turns and decays from none to all within a chunk."""
    from models.ssm import fused
    from models.ssm.chunked import chunk_filters, mode_gradients
    from models.ssm.conv import diagonal_sums
    from models.ssm.kernel import Modes

    torch.manual_seed(0)
    shape, C = (directions, 2, modes), fused.FUSED_CHUNK
    given = Modes(-4 * torch.rand(shape) ** 4, 40 * torch.randn(shape), torch.randn(shape), torch.randn(shape))
    skip = torch.randn(streams, 2)
    wide = Modes(*(part.double() for part in given))
    tables, a = fused.fused_tables(given, skip), torch.complex(wide.a_re, wide.a_im)
    assert close(tables.filters, chunk_filters(wide, skip.double(), C))
    carry = torch.exp(C * a)
    assert (torch.complex(tables.modes[:, :, 5], tables.modes[:, :, 6]) - carry).norm() < 1e-7 * carry.norm()
    turns = tables.modes[:, :, 1].double() + tables.modes[:, :, 2].double() - wide.a_im / (2 * torch.pi)
    assert (turns - turns.round()).abs().max() < 1e-12
    assert torch.equal(tables.modes[:, :, 3], 2 * given.c_re)

    products, moments = torch.randn(streams, 2, C, C), torch.randn(directions, 2, 4, modes)
    grads, grad_skip = [torch.empty(shape) for _ in given], torch.empty_like(skip)
    fused._start(fused.chain_rule_kernel, (2,), (products, moments, tables.modes, *grads, grad_skip, modes), tables)
    filters = torch.stack([diagonal_sums(product) for product in products.double()])
    orders = (torch.complex(moments[:, :, i].double(), moments[:, :, i + 1].double()) for i in (0, 2))
    expected, expected_skip = mode_gradients(filters, *orders, wide)
    assert all(close(got, wanted) for got, wanted in zip(grads, expected, strict=True))
    assert close(grad_skip, expected_skip)


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return ((actual - expected).norm() < 1e-6 * expected.norm()).item() is True


@pytest.mark.parametrize("held", ["channels first", "expanded", "every other token"])
def test_strides(held: str) -> None:
    """The kernels read any strides: the operator copies what is not held channels first, so they are asked directly."""
    p = problem(Case(70), torch.float32)
    x, D = p.inputs[0], p.inputs[-1]
    odd = {
        "channels first": x.mT.contiguous().mT,
        "expanded": x[:1].expand_as(x),
        "every other token": x.repeat_interleave(2, dim=1)[:, ::2],
    }[held]
    from models.ssm import fused
    from models.ssm.kernel import discretise

    log_dt, a_re, a_im, c_re, c_im = p.inputs[1:6]
    modes = discretise(log_dt, (a_re, a_im), (c_re, c_im), "zoh")
    tables, views = fused.fused_tables(modes, D), (odd.permute(2, 0, 1), odd.permute(2, 0, 1).clone())
    plain = views[1].contiguous()
    assert torch.equal(fused.fused_conv(views[0], tables), fused.fused_conv(plain, tables))
    dy = p.dy.permute(2, 0, 1).unflatten(0, D.shape)
    for strided in (dy, dy.contiguous()):
        for got, wanted in zip(
            _flat(fused.fused_conv_backward(strided, views[0], tables)),
            _flat(fused.fused_conv_backward(dy.contiguous(), plain, tables)),
            strict=True,
        ):
            assert torch.equal(got, wanted)


def _flat(gradients: tuple[torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]) -> list[torch.Tensor]:
    return [gradients[0], *gradients[1], gradients[2]]


def test_the_same_every_time() -> None:
    p = problem(Case(130, 20), torch.float32)
    with forced(Form.FUSED):
        for first, second in zip(computed(p), computed(p), strict=True):
            assert torch.equal(first, second)


@pytest.mark.parametrize("join", ["sum", "concat"])
def test_evaluating_with_kept_tables(join: str) -> None:
    layer, u = S4D(3, 8, join=join).eval(), torch.randn(2, 70, 3)
    with torch.no_grad():
        expected = layer(u)
        with forced(Form.FUSED):
            torch.testing.assert_close(layer(u), expected, rtol=0, atol=5e-6 * expected.abs().max().item())


def test_a_fast_decay_and_a_fast_phase() -> None:
    """Modes that are gone within a chunk, and ones that turn by nearly a half per step."""
    layer, u = S4D(2, 64, init="real", dt_min=5, dt_max=10), torch.randn(2, 70, 2)
    fast = S4D(2, 64, init="inv", dt_min=0.1, dt_max=0.1)
    for module in (layer, fast):
        with torch.no_grad():
            expected = module.double()(u.double())
            module.float()
            with forced(Form.FUSED):
                actual = module(u)
        assert (actual - expected).norm() < 2e-5 * expected.norm()


@pytest.mark.parametrize("name", ["tables_kernel", "conv_kernel", "conv_backward_kernel", "chain_rule_kernel"])
def test_kernels_start_on_the_device_of_their_sequence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.ssm import fused

    monkeypatch.setattr(fused, name, guard := Guarded(getattr(fused, name), monkeypatch))
    assert found(Case(70)) == []
    assert guard.launches > 0
