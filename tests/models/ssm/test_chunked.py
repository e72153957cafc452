"""The chunked form equals the textbook in every layout, shape and precision, and it alone decides nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.exactness import LENGTHS, Case, errors, excess, forced, problem, textbook
from models.ssm import chunked, core, forms
from models.ssm.core import s4d
from models.ssm.forms import Form
from models.ssm.s4d import S4D
from tests.models.ssm.test_core import LAYOUTS, assert_equal_with_gradients, example


@pytest.fixture(params=[4, 8, 128])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(chunked, "CHUNK", request.param)
    with forced(Form.CHUNKED):
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 31, 100])
def test_equal_to_the_textbook_in_float64(length: int, directions: int, streams: int, chunk: int) -> None:
    assert_equal_with_gradients(example(length, directions, streams), 1e-12)


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
def test_gradcheck(directions: int, streams: int, chunk: int) -> None:
    assert torch.autograd.gradcheck(s4d, example(9, directions, streams))


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", LENGTHS)
def test_float32_within_the_tolerances_at_every_length(length: int, directions: int, streams: int) -> None:
    p = problem(Case(length, directions=directions, streams=streams), torch.float32)
    assert excess(errors(Form.CHUNKED, p, textbook(p)), torch.float32) == []


@pytest.mark.parametrize("case", [Case(300, batch, width, 32) for batch, width in ((1, 1), (5, 7), (64, 3))], ids=str)
def test_float32_within_the_tolerances_at_any_batch_and_width(case: Case) -> None:
    p = problem(case, torch.float32)
    assert excess(errors(Form.CHUNKED, p, textbook(p)), torch.float32) == []


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", [64, 100, 1024])
def test_bfloat16_within_the_tolerances(length: int, directions: int, streams: int) -> None:
    p = problem(Case(length, 4, 3, 32, directions, streams), torch.bfloat16)
    assert excess(errors(Form.CHUNKED, p, textbook(p)), torch.bfloat16) == []


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("length", [5, 300])
def test_nothing_unwritten_is_read(length: int) -> None:
    assert torch.empty(3).isnan().all()
    p = problem(Case(length), torch.float32)
    assert excess(errors(Form.CHUNKED, p, textbook(p)), torch.float32) == []


def test_a_wrong_gradient_is_seen() -> None:
    """The tolerances and the comparison can fail: the gradients of modes without those between chunks."""
    p = problem(Case(300), torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        right = chunked.mode_gradients
        patch.setattr(chunked, "mode_gradients", lambda g, m0, m1, modes: right(g, 0 * m0, m1, modes))
        names = {line.split()[0] for line in excess(errors(Form.CHUNKED, p, textbook(p)), torch.float32)}
    assert {"C_re", "C_im", "log_dt"} <= names


@pytest.mark.parametrize("held", ["channels first", "slice", "expanded", "reversed batch"])
def test_sequences_may_be_held_in_any_way(held: str) -> None:
    u, *rest = (x.detach() for x in example(300))
    odd = {
        "channels first": u.mT.contiguous().mT,
        "slice": torch.cat([u, u], dim=-1)[..., :3],
        "expanded": u[:1].expand(2, -1, -1),
        "reversed batch": u.transpose(0, 1).contiguous().transpose(0, 1),
    }[held]
    with forced(Form.CHUNKED):
        assert_equal_with_gradients(tuple(x.requires_grad_() for x in (odd, *rest)), 1e-12)


def test_operators_are_registered_soundly() -> None:
    length = 140  # two chunks
    inputs = example(length)
    plain = tuple(x.detach() for x in inputs)
    with forced(Form.CHUNKED):
        torch.library.opcheck(core.s4d_forward, (*inputs, False))
        y, *kept = core.s4d_forward(*plain, False)
        torch.library.opcheck(core.s4d_backward, (y, *plain, *kept))
        torch.library.opcheck(core.s4d_tables, (*plain[1:], length, "CHUNKED"))
        torch.library.opcheck(core.s4d_apply, (plain[0], core.s4d_tables(*plain[1:], length, "CHUNKED"), "CHUNKED"))


@pytest.mark.parametrize("join", ["sum", "concat"])
def test_evaluating_keeps_tables_and_gives_the_same(join: str) -> None:
    layer, u = S4D(5, 8, join=join).eval(), torch.randn(2, 300, 5)
    with torch.no_grad():
        expected = layer(u)
        with forced(Form.CHUNKED):
            torch.testing.assert_close(layer(u), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
            assert layer._tables._entry is not None
            kept = layer._tables._entry.tables
            layer(u)
            assert layer._tables._entry.tables is kept


class Sequence(NamedTuple):
    """As much of a tensor (B, L, H) as the choice looks at."""

    device: torch.device
    dtype: torch.dtype
    shape: tuple[int, int, int]


@pytest.mark.parametrize(
    ("device", "dtype", "length", "modes", "triton", "form"),
    [
        ("cpu", torch.float32, 1024, 32, True, Form.CONVOLUTION),
        ("cpu", torch.bfloat16, 1024, 32, True, Form.CONVOLUTION),
        ("cuda", torch.float32, 1024, 32, True, Form.CONVOLUTION),
        ("cuda", torch.float64, 64, 32, True, Form.CONVOLUTION),
        ("cuda", torch.bfloat16, 1024, 32, True, Form.FUSED),
        ("cuda", torch.bfloat16, 129, 8, True, Form.FUSED),
        ("cuda", torch.float16, 1024, 32, True, Form.CONVOLUTION),
        ("cuda", torch.bfloat16, 128, 32, True, Form.CHUNKED),
        ("cuda", torch.bfloat16, 1024, 64, True, Form.CHUNKED),
        ("cuda", torch.bfloat16, 1024, 32, False, Form.CHUNKED),
        ("mps", torch.bfloat16, 1024, 32, False, Form.CHUNKED),
        ("mps", torch.float16, 1024, 32, False, Form.CONVOLUTION),
    ],
)
def test_one_place_chooses(
    device: str,
    dtype: torch.dtype,
    length: int,
    modes: int,
    triton: bool,
    form: Form,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forms, "triton_runs_on", lambda device: triton)
    u: Tensor = Sequence(torch.device(device), dtype, (2, length, 3))  # type: ignore[assignment]
    assert forms.choose(u, modes) is form


def test_executed_operations_by_hand() -> None:
    """Per output, both directions summed: 2C + 8S in chunks of C with S = 2n; 2L as one product."""
    u = (3, 1024, 5)
    outputs = 3 * 1024 * 5
    assert forms.executed_flops(Form.FUSED, u, 32, 2, 1) == outputs * (2 * 64 + 8 * 64)
    assert forms.executed_flops(Form.CHUNKED, u, 32, 2, 1) == outputs * (2 * 128 + 8 * 64)
    assert forms.executed_flops(Form.FUSED, u, 32, 2, 2) == outputs * (4 * 64 + 8 * 64)
    assert forms.executed_flops(Form.CHUNKED, (3, 100, 5), 32, 2, 1) == 3 * 100 * 5 * 2 * 100
    assert forms.executed_flops(Form.CONVOLUTION, (3, 64, 5), 32, 2, 2) == 3 * 64 * 5 * 2 * 2 * 64
    # L = 1024: three transforms of length 2048 at 2.5 n log2 n, two spectra of 1025 bins.
    assert forms.executed_flops(Form.CONVOLUTION, u, 32, 2, 2) == 15 * (3 * 56320 + 2 * 6 * 1025)
