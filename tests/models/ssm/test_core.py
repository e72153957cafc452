"""The fast core equals the textbook form, a recurrence stepped by hand, and its own derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.ssm import conv, core
from models.ssm.core import s4d, textbook
from models.ssm.kernel import Modes, discretise, integer_powers, power_tables, split_kernel, vandermonde_kernel
from models.ssm.s4d import DISCRETISATIONS, initial_eigenvalues, s4d_macs

LAYOUTS = ((1, 1), (2, 1), (2, 2))  # directions, streams: forward, sum, concat


def example(
    length: int, directions: int = 2, streams: int = 2, dtype: torch.dtype = torch.float64, rule: str = "zoh"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the operator as a fresh layer would make them: 3 channels, 4 modes, 2 sequences."""
    generator = torch.Generator().manual_seed(length)
    real, imaginary = initial_eigenvalues("lin", 8)
    log_dt = torch.empty(directions, 3, dtype=dtype).uniform_(-5, -1, generator=generator)
    A = real.to(dtype).expand(directions, 3, 4), imaginary.to(dtype).expand(directions, 3, 4)
    C = [torch.randn(directions, 3, 4, dtype=dtype, generator=generator) for _ in range(2)]
    modes = discretise(log_dt, A, (C[0], C[1]), rule)
    u = torch.randn(2, length, 3, dtype=dtype, generator=generator)
    skip = torch.randn(streams, 3, dtype=dtype, generator=generator)
    inputs = (u, *(part.contiguous() for part in modes), skip)
    return tuple(x.clone().requires_grad_() for x in inputs)  # type: ignore[return-value]


def reference(u: Tensor, a_re: Tensor, a_im: Tensor, c_re: Tensor, c_im: Tensor, skip: Tensor) -> Tensor:
    return textbook(u, Modes(a_re, a_im, c_re, c_im), skip)


def assert_equal_with_gradients(inputs: tuple[Tensor, ...], tolerance: float) -> None:
    """Outputs and all gradients, relative to the largest entry of each."""
    expected, actual = reference(*inputs), s4d(*inputs)
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(0))
    pairs = zip(
        (actual, *torch.autograd.grad((actual * weights).sum(), inputs)),
        (expected, *torch.autograd.grad((expected * weights).sum(), inputs)),
        strict=True,
    )
    for got, wanted in pairs:
        atol = tolerance * (wanted.abs().max().item() + 1e-12)
        torch.testing.assert_close(got, wanted, rtol=0, atol=atol)


@pytest.fixture(params=["direct", "transforms"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(core, "DIRECT_LENGTH", 10**6 if request.param == "direct" else 0)
    return request.param


@pytest.mark.parametrize("rule", DISCRETISATIONS)
@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 31, 61, 97, 100])
def test_fast_forms_equal_the_textbook(length: int, directions: int, streams: int, rule: str, form: str) -> None:
    assert_equal_with_gradients(example(length, directions, streams, rule=rule), 1e-12)


@pytest.mark.parametrize("length", [64, 65, 1024, 1009, 4096])
def test_float32_is_as_exact_as_float32_can_be(length: int) -> None:
    exact = example(length)
    inputs = tuple(x.detach().float() for x in exact)
    expected, actual = s4d(*exact), s4d(*inputs)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected.detach(), rtol=0, atol=5e-6 * expected.abs().max().item())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize(
    ("batch", "length", "width"), [(0, 5, 3), (1, 1, 1), (2, 7, 3), (20, 64, 1), (1, 64, 40), (35, 16, 33)]
)
def test_short_sequences_are_convolved_as_they_lie(
    batch: int, length: int, width: int, directions: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 and tokens first, by channels: the products of the matrix form in float64, and its gradients."""
    generator = torch.Generator().manual_seed(length)
    u = torch.randn(batch, length, width, generator=generator, dtype=torch.float64)
    filters = torch.randn(streams, width, 2 * length - 1, generator=generator, dtype=torch.float64)
    grad = torch.randn(batch, length, streams * width, generator=generator, dtype=torch.float64)
    grad_y = grad.unflatten(2, (streams, width)).permute(2, 3, 0, 1)  # (streams, H, B, L)
    wanted = conv.direct_conv(u.permute(2, 0, 1), filters).flatten(0, 1).permute(1, 2, 0)
    wanted_grad, wanted_taps = conv.direct_conv_backward(grad_y, u.permute(2, 0, 1), filters)
    found = conv.depthwise_conv(u.float(), filters.float())
    found_grad = conv.depthwise_conv_backward(grad.float(), filters.float())
    found_taps = conv.depthwise_filter_gradient(grad.float(), u.float())
    assert found.is_contiguous()
    assert found_grad.is_contiguous()
    for got, right in ((found, wanted), (found_grad, wanted_grad.permute(1, 2, 0)), (found_taps, wanted_taps)):
        allowed = 3e-6 * right.abs().max().item() if right.numel() else 0
        torch.testing.assert_close(got.double(), right, rtol=0, atol=allowed)
    used = []
    monkeypatch.setattr(core, "depthwise_conv", lambda *given: used.append(1) or conv.depthwise_conv(*given))
    for wide in (core.WIDE, 1):
        monkeypatch.setattr(core, "WIDE", wide)
        assert_equal_with_gradients(example(length, directions, streams, torch.float32), 2e-5)
    assert used


def test_threads_do_not_change_a_short_convolution() -> None:
    u, filters = torch.randn(16, 64, 40), torch.randn(2, 40, 127)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append((conv.depthwise_conv(u, filters), conv.depthwise_filter_gradient(u, u)))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


def test_many_slabs_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "SLAB_BYTES", 2 * 8 * 2 * 2 * conv.transform_length(100))  # two of three channels
    assert_equal_with_gradients(example(100), 1e-12)


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", [16, 61])
def test_gradients_are_the_same_when_nothing_was_kept(length: int, directions: int, streams: int, form: str) -> None:
    inputs = tuple(x.detach() for x in example(length, directions, streams))
    grad, *kept = core.s4d_forward(*inputs, True)
    y, *nothing = core.s4d_forward(*inputs, False)
    assert [x.numel() for x in nothing] == [0] * 4
    assert torch.equal(y, grad)
    expected, actual = core.s4d_backward(grad, *inputs, *kept), core.s4d_backward(grad, *inputs, *nothing)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12 * wanted.abs().max().item())


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    forward = core.s4d_forward
    monkeypatch.setattr(core, "s4d_forward", lambda *inputs: kept.append(inputs[-1]) or forward(*inputs))
    inputs = example(20)
    s4d(*inputs)
    s4d(*(x.detach() for x in inputs))
    with torch.no_grad():
        s4d(*inputs)
    s4d(*(x.to("meta") for x in inputs))
    assert kept == [True, False, False, False]


@pytest.mark.parametrize("length", [3, 600])
@pytest.mark.parametrize("held", ["tokens first", "channels first", "slice"])
def test_long_sequences_are_transposed_like_short_ones(length: int, held: str) -> None:
    u = torch.randn(2, length, 5)
    u = {"tokens first": u, "channels first": u.mT.contiguous().mT, "slice": u[:, :, 1:4]}[held]
    x = core.channels_first(u, torch.float32)
    assert torch.equal(x, u.permute(2, 0, 1))
    assert x.stride(-1) == 1
    assert torch.equal(core._tokens_first(x.contiguous(), u), u)


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
def test_gradcheck(directions: int, streams: int, form: str) -> None:
    assert torch.autograd.gradcheck(s4d, example(5, directions, streams))


@pytest.mark.parametrize("rule", DISCRETISATIONS)
def test_recurrence_gives_the_same_outputs(rule: str) -> None:
    """s' = A_d s + B_d u with y = 2 Re(C s') + D u, one token at a time, from continuous A."""
    length, dt = 40, torch.tensor([0.3, 0.01], dtype=torch.float64)
    A = torch.complex(-torch.tensor([0.5, 1.5, 0.2]), torch.tensor([0.0, 2.0, -7.0])).to(torch.complex128)
    C = torch.randn(2, 3, dtype=torch.complex128)
    u, skip = torch.randn(1, length, 2, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    z = dt[:, None] * A
    if rule == "zoh":
        A_d, B_d = z.exp(), (z.exp() - 1) / A
    else:
        A_d, B_d = (1 + z / 2) / (1 - z / 2), dt[:, None] / (1 - z / 2)
    state, outputs = torch.zeros(2, 3, dtype=torch.complex128), []
    for token in u[0]:
        state = A_d * state + B_d * token[:, None]
        outputs.append(2 * (C * state).sum(-1).real + skip[0] * token)
    modes = discretise(dt.log()[None], (A.real.expand(1, 2, 3), A.imag.expand(1, 2, 3)), (C.real, C.imag), rule)
    torch.testing.assert_close(s4d(u, *modes, skip)[0], torch.stack(outputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bilinear_steps_may_forget_everything(dtype: torch.dtype) -> None:
    """At dt A = -2 the discrete eigenvalue is 0, whose logarithm and phase do not exist; near it both are steep."""
    z_re = torch.tensor([[[-2.0, -2.0, -1.999999], [-0.5, -3.0, -2.0]]], dtype=dtype, requires_grad=True)
    z_im = torch.tensor([[[0.0, 1.0, 0.0], [0.0, -2.0, 1e-6]]], dtype=dtype, requires_grad=True)
    C = torch.ones(1, 2, 3, dtype=dtype), torch.zeros(1, 2, 3, dtype=dtype)
    modes = discretise(torch.zeros(1, 2, dtype=dtype), (z_re, z_im), C, "bilinear")
    z = torch.complex(z_re.detach().double(), z_im.detach().double())
    powers = torch.stack([((1 + z / 2) / (1 - z / 2)) ** step for step in range(8)], dim=-1)
    expected = 2 * (powers / (1 - z / 2)[..., None]).sum(-2).real
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(vandermonde_kernel(modes, 8).double(), expected, rtol=0, atol=tolerance)
    parts = Modes(*(part.detach() for part in modes))
    torch.testing.assert_close(
        split_kernel(parts, power_tables(parts, 8), 8).double(), expected, rtol=0, atol=tolerance
    )
    y = s4d(torch.ones(1, 8, 2, dtype=dtype), *modes, torch.ones(1, 2, dtype=dtype))
    for grad in torch.autograd.grad(y.square().sum(), (z_re, z_im)):
        assert grad.isfinite().all()


@given(length=st.integers(1, 90), layout=st.sampled_from(LAYOUTS), threshold=st.sampled_from([0, 64]))
def test_any_length_equals_the_textbook(length: int, layout: tuple[int, int], threshold: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "DIRECT_LENGTH", threshold)
        assert_equal_with_gradients(example(length, *layout), 1e-12)


@given(length=st.integers(1, 70), at=st.integers(0, 69))
def test_an_impulse_reaches_its_own_side_of_each_direction(length: int, at: int) -> None:
    at %= length
    u, *rest = (x.detach() for x in example(length))
    impulse = torch.zeros_like(u)
    impulse[:, at] = 1
    y = s4d(impulse, *rest)
    kernels = vandermonde_kernel(Modes(*rest[:4]), length)
    forward, backward = y[0].mT[:3], y[0].mT[3:]
    kernels[:, :, 0] += rest[4]  # the skip
    torch.testing.assert_close(forward[:, at:], kernels[0, :, : length - at])
    torch.testing.assert_close(backward[:, : at + 1], kernels[1, :, : at + 1].flip(-1))
    assert forward[:, :at].abs().max().item() < 1e-12 if at else True
    assert backward[:, at + 1 :].abs().max().item() < 1e-12 if at + 1 < length else True


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
def test_sequences_held_channels_first_stay_so(directions: int, streams: int, form: str) -> None:
    u, *rest = example(23, directions, streams)
    held = u.detach().mT.contiguous().mT.requires_grad_()
    assert_equal_with_gradients((held, *rest), 1e-12)
    y = s4d(held, *rest)
    assert y.mT.is_contiguous()
    assert torch.equal(y, s4d(u, *rest))


def test_sum_is_the_sum_of_concat() -> None:
    u, *modes, skip = example(33)
    two = s4d(u, *modes, skip).unflatten(-1, (2, 3)).sum(-2)
    torch.testing.assert_close(s4d(u, *modes, skip.sum(0, keepdim=True)), two)


def test_shifted_directions_share_no_tap() -> None:
    u, kernels = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(2, 3, 9, dtype=torch.float64)
    _, backward = conv.two_way_conv(u, kernels, shift=1)
    for i in range(9):
        expected = sum((kernels[1, :, j - i - 1] * u[..., j] for j in range(i + 1, 9)), torch.zeros(2, 3))
        torch.testing.assert_close(backward[..., i], expected.double())


@pytest.mark.parametrize("length", [1, 7, 256, 1000])
def test_split_kernel_equals_vandermonde_also_when_modes_die_out(length: int) -> None:
    _, a_re, a_im, c_re, c_im, _ = (x.detach() for x in example(length, dtype=torch.float32))
    modes = Modes(a_re * 100, a_im * 100, c_re, c_im)
    expected = vandermonde_kernel(modes, length)
    actual = split_kernel(modes, power_tables(modes, length), length)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out_computes_in_float32(dtype: torch.dtype) -> None:
    inputs = tuple(x.detach().float() for x in example(80))
    u = inputs[0].to(dtype)
    y = s4d(u, *inputs[1:])
    assert y.dtype == dtype
    assert torch.equal(y, s4d(u.float(), *inputs[1:]).to(dtype))


@pytest.mark.parametrize("length", [20, 80])
def test_autocast_changes_nothing(length: int) -> None:
    inputs = tuple(x.detach().float().requires_grad_() for x in example(length))
    plain = s4d(*inputs)
    grads = torch.autograd.grad(plain.sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = s4d(*inputs)
        assert torch.equal(mixed, plain)
        for got, wanted in zip(torch.autograd.grad(mixed.sum(), inputs), grads, strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("length", [20, 80])
def test_operators_are_registered_soundly(length: int, transposed: bool) -> None:
    """Fake outputs have the shapes, dtypes and strides of real ones; schemas tell the truth; autograd is traced."""
    inputs = example(length)
    if transposed:
        inputs = (inputs[0].detach().mT.contiguous().mT.requires_grad_(), *inputs[1:])
    for keep in (False, True):
        torch.library.opcheck(core.s4d_forward, (*inputs, keep))
    plain = tuple(x.detach() for x in inputs)
    tables = core.s4d_tables(*plain[1:], length)
    torch.library.opcheck(core.s4d_tables, (*plain[1:], length))
    torch.library.opcheck(core.s4d_apply, (plain[0], tables))
    for keep in (False, True):
        y, *kept = core.s4d_forward(*plain, keep)
        torch.library.opcheck(core.s4d_backward, (y, *plain, *kept))


@pytest.mark.parametrize(("directions", "streams"), LAYOUTS)
@pytest.mark.parametrize("length", [16, 50, 128])
def test_flop_counter_agrees_with_the_closed_form_whatever_the_form(length: int, directions: int, streams: int) -> None:
    direction, join = ("both" if directions == 2 else "forward"), ("concat" if streams == 2 else "sum")
    macs = s4d_macs(length, 3, 8, direction, join)
    inputs = tuple(x.detach().to("meta").requires_grad_() for x in example(length, directions, streams))
    with FlopCounterMode(display=False) as counter:
        y = s4d(*inputs)
    forward = counter.get_flop_counts()["Global"]
    assert forward == {torch.ops.ssm.s4d: 2 * (2 * macs.fft + macs.kernel)}  # two sequences, one kernel
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * sum(forward.values())


def test_cached_operators_split_the_count() -> None:
    u, *rest = (x.detach() for x in example(50))
    macs = s4d_macs(50, 3, 8)
    with FlopCounterMode(display=False) as counter:
        core.s4d_apply(u, core.s4d_tables(*rest, 50))
    counts = counter.get_flop_counts()["Global"]
    assert counts == {torch.ops.ssm.s4d_apply: 4 * macs.fft, torch.ops.ssm.s4d_tables: 2 * macs.kernel}


def test_macs_by_hand() -> None:
    """L=4, H=1, one pair: transforms of length 8 cost 1.25 * 8 * 3 = 30; 5 bins of 3; 5 * 4 per kernel."""
    assert s4d_macs(4, 1, 2, "both", "sum").parts() | {"elementwise": 0} == _parts(fft=2 * 30 + 15, kernel=40 + 30)
    assert s4d_macs(4, 1, 2, "both", "concat").parts() | {"elementwise": 0} == _parts(fft=3 * 30 + 30, kernel=40 + 60)
    assert s4d_macs(4, 1, 2, "forward", "concat").parts() | {"elementwise": 0} == _parts(fft=75, kernel=20 + 30)


def _parts(fft: int, kernel: int) -> dict[str, int]:
    return {"matmul": 0, "attention": 0, "fft": fft, "scan": 0, "kernel": kernel, "elementwise": 0}


def test_powers_are_made_where_their_modes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers copied from Python would wait for everything that an accelerator has queued."""
    modes = Modes(*(torch.rand(2, 3, 4) - 1 for _ in range(4)))
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("copied from Python"))
    powers = integer_powers(modes, 9)
    expected = torch.exp(torch.complex(modes.a_re, modes.a_im)[:, :, None] * torch.arange(9)[:, None])
    torch.testing.assert_close(powers, expected)
