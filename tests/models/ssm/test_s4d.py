"""The S4D layer equals the S4 repository's on its own arrays, and starts, fails and trains as it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.ssm.conv import causal_conv, two_way_conv
from models.ssm.core import s4d
from models.ssm.kernel import Modes, discretise, power_tables, split_kernel, vandermonde_kernel
from models.ssm.s4d import DIRECTIONS, INITS, JOINS, S4D, initial_eigenvalues
from tests.parity_arrays import ParityArrays, assert_forward, assert_gradient, load_parity


def reference_layer(parity: ParityArrays) -> S4D:
    """Our causal layer with the weights of the file's."""
    params = parity.params
    width, n = params["kernel.log_A_real"].shape
    layer = S4D(width, 2 * n, direction="forward")
    own = {"log_dt": "kernel.log_dt", "log_A_real": "kernel.log_A_real", "A_imag": "kernel.A_imag", "C": "kernel.C"}
    layer.load_state_dict({name: params[key][None] for name, key in {**own, "D": "D"}.items()})
    return layer


@pytest.mark.parametrize("length", [17, 64])
def test_kernels_and_convolution_equal_the_reference(length: int) -> None:
    parity = load_parity("s4d_layer")
    with torch.no_grad():
        modes = reference_layer(parity).modes()
    expected, u = parity.tensor(f"L{length}/K"), parity.tensor(f"L{length}/u")
    for kernel in (vandermonde_kernel(modes, length), split_kernel(modes, power_tables(modes, length), length)):
        torch.testing.assert_close(kernel[0], expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    conv_only = parity.tensor(f"L{length}/conv_only")
    assert_forward(causal_conv(u, expected), conv_only)
    assert_forward(s4d(u.mT, *modes, torch.zeros(1, 16)).mT, conv_only)


@pytest.mark.parametrize("length", [17, 64])
def test_whole_layer_and_gradients_equal_the_reference(length: int) -> None:
    """The reference's layer goes on with an exact GELU, a 1 x 1 convolution and a GLU."""
    parity = load_parity("s4d_layer")
    layer, mixing = reference_layer(parity), nn.Conv1d(16, 32, 1)
    mixing.load_state_dict({key: parity.params[f"output_linear.0.{key}"] for key in ("weight", "bias")})
    u = parity.tensor(f"L{length}/u").requires_grad_()
    y = F.glu(mixing(F.gelu(layer(u.mT)).mT), dim=-2)
    assert_forward(y, parity.tensor(f"L{length}/y"))
    (y * parity.tensor(f"L{length}/w")).sum().backward()
    assert_gradient(u.grad, parity.tensor(f"L{length}/grad_u"))
    ours = {"D": layer.D.grad, **{f"kernel.{k}": getattr(layer, k).grad for k in ("C", *layer.no_weight_decay)}}
    expected = parity.group(f"L{length}/grad")
    for key, grad in ours.items():
        assert grad is not None
        assert_gradient(grad[0], expected[key], key)
        torch.testing.assert_close(grad.norm(), expected[key].norm(), rtol=1e-3, atol=0)
    for key in ("weight", "bias"):
        assert_gradient(getattr(mixing, key).grad, expected[f"output_linear.0.{key}"], key)


@pytest.mark.parametrize("init", ["lin", "inv"])
class TestBidirectionalReference:
    """Its backward kernel is shifted by one: y_b[i] there is our y_b[i+1], with no skip of its own."""

    def modes(self, params: dict[str, Tensor]) -> Modes:
        """A = -exp(A_real) - i A_imag and dt shared by both directions, and B apart from C."""
        b, c = (torch.view_as_complex(params[f"kernel.{key}"]) for key in "BC")
        weights = torch.view_as_real(b * c)
        shape = weights.shape[:-1]
        A = -params["kernel.A_real"].exp().expand(shape), -params["kernel.A_imag"].expand(shape)
        log_dt = params["kernel.inv_dt"][:, 0].expand(shape[:2])
        return discretise(log_dt, A, (weights[..., 0], weights[..., 1]), "zoh")

    def test_kernels(self, init: str) -> None:
        parity = load_parity(f"s4d_bidirectional_{init}")
        modes, expected = self.modes(parity.params), parity.tensor("K_two_channels")
        length = expected.shape[-1]
        for kernel in (vandermonde_kernel(modes, length), split_kernel(modes, power_tables(modes, length), length)):
            torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    def test_shifted_textbook_convolution(self, init: str) -> None:
        parity = load_parity(f"s4d_bidirectional_{init}")
        u = parity.inputs["u"]
        forward, backward = two_way_conv(u, parity.tensor("K_two_channels"), shift=1)
        y = forward + backward + parity.params["D"][0, :, None] * u
        assert_forward(y, parity.outputs["y"])
        assert_forward(y, parity.outputs["y_direct"])

    @pytest.mark.parametrize("threshold", [0, 64])
    def test_fast_core_and_gradients(self, init: str, threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("models.ssm.core.DIRECT_LENGTH", threshold)
        parity = load_parity(f"s4d_bidirectional_{init}")
        params = {key: value.clone().requires_grad_() for key, value in parity.params.items()}
        u = parity.inputs["u"].clone().requires_grad_()
        skip = torch.cat([params["D"], torch.zeros_like(params["D"])])
        forward, backward = s4d(u.mT, *self.modes(params), skip).mT.chunk(2, dim=1)
        y = forward + F.pad(backward[..., 1:], (0, 1))
        assert_forward(y, parity.outputs["y"])
        (y * parity.tensor("grad/w")).sum().backward()
        assert_gradient(u.grad, parity.tensor("grad/u"))
        for key, expected in parity.group("grad/param").items():
            assert_gradient(params[key].grad, expected, key)


@pytest.mark.parametrize("join", JOINS)
def test_true_bidirectional_identity(join: str) -> None:
    """Flip-convolve-flip plus convolve is one circular convolution of length 2L, both diagonals counted."""
    layer = S4D(3, 8, join=join).double()
    u = torch.randn(2, 11, 3, dtype=torch.float64)
    k = vandermonde_kernel(layer.modes(), 11)
    x, D = u.mT, layer.D[..., None]
    ways = causal_conv(x, k[0]), causal_conv(x.flip(-1), k[1]).flip(-1)
    if join == "concat":
        expected = torch.cat([way + d * x for way, d in zip(ways, D, strict=True)], dim=1)
    else:
        circular = torch.cat([k[0] + F.pad(k[1, :, :1], (0, 10)), torch.zeros(3, 1), k[1, :, 1:].flip(-1)], dim=-1)
        product = torch.fft.rfft(x, n=22) * torch.fft.rfft(circular)
        expected = torch.fft.irfft(product, n=22)[..., :11] + D[0] * x
        torch.testing.assert_close(expected, ways[0] + ways[1] + D[0] * x)
    torch.testing.assert_close(layer(u), expected.mT)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("join", JOINS)
def test_what_each_end_sees(direction: str, join: str) -> None:
    layer = S4D(2, 4, direction=direction, join=join)
    u = torch.randn(1, 9, 2, requires_grad=True)
    y = layer(u)
    assert y.shape == (1, 9, 2 * layer.streams)
    (sees_last,) = torch.autograd.grad(y[0, 0].sum(), u, retain_graph=True)
    (sees_first,) = torch.autograd.grad(y[0, -1].sum(), u)
    assert (sees_last[0, -1].abs().min() > 1e-6) == (direction == "both")
    assert sees_first[0, 0].abs().min() > 1e-6


class TestInitialisation:
    def test_lin_equals_the_reference(self) -> None:
        init = load_parity("s4d_layer").group("init")
        layer = S4D(16, 16, "lin", direction="forward")
        torch.testing.assert_close(layer.log_A_real[0], init["log_A_real"])
        torch.testing.assert_close(layer.A_imag[0], init["A_imag"])

    def test_inv_follows_the_full_state(self) -> None:
        real, imaginary = initial_eigenvalues("inv", 8)
        assert real.tolist() == [-0.5] * 4
        expected = [8 / math.pi * (8 / odd - 1) for odd in (1, 3, 5, 7)]
        torch.testing.assert_close(imaginary, torch.tensor(expected))

    def test_real(self) -> None:
        real, imaginary = initial_eigenvalues("real", 6)
        assert (real.tolist(), imaginary.tolist()) == ([-1, -2, -3], [0, 0, 0])

    def test_distributions(self) -> None:
        layer = S4D(4000, 4, dt_min=1e-2, dt_max=1.0)
        dt = layer.log_dt.exp()
        assert 1e-2 <= dt.min() < 1.1e-2
        assert 0.9 < dt.max() <= 1
        assert abs(dt.log().mean().item() - math.log(0.1)) < 0.05
        assert abs(layer.C.var().item() - 0.5) < 0.05
        assert abs(layer.D.var().item() - 1) < 0.1

    @pytest.mark.parametrize("init", INITS)
    def test_every_init_is_stable_and_bounded(self, init: str) -> None:
        y = S4D(4, 16, init)(torch.randn(2, 300, 4))
        assert y.isfinite().all()
        assert y.abs().max() < 1e3


def test_parameters_and_their_groups() -> None:
    layer = S4D(6, 8, lr_scale=0.1)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {"log_dt": (2, 6), "log_A_real": (2, 6, 4), "A_imag": (2, 6, 4), "C": (2, 6, 4, 2), "D": (2, 6)}
    assert set(layer.no_weight_decay) < shapes.keys()
    assert layer.lr_scale == 0.1


def test_every_parameter_gets_a_gradient_and_training_helps() -> None:
    torch.manual_seed(0)
    layer = S4D(3, 8)
    u = torch.randn(4, 20, 3)
    target = S4D(3, 8)(u).detach()
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (layer(u) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_half_precision_module_keeps_float32_phases() -> None:
    layer = S4D(3, 8).bfloat16()
    assert layer.modes().a_im.dtype == torch.float32
    y = layer(torch.randn(1, 70, 3, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.A_imag.grad is not None
    assert layer.A_imag.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("length", [12, 80])
def test_compiled_equals_eager(length: int) -> None:
    layer = S4D(3, 8)
    u = torch.randn(2, length, 3, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    inputs = (u, *layer.parameters())
    expected, actual = layer(u), compiled(u)
    torch.testing.assert_close(actual, expected)
    for got, wanted in zip(
        torch.autograd.grad(actual.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_layout_of_the_input_does_not_matter() -> None:
    layer, u = S4D(5, 8), torch.randn(5, 3, 70)
    torch.testing.assert_close(layer(u.permute(1, 2, 0)), layer(u.permute(1, 2, 0).contiguous()))
    torch.testing.assert_close(
        layer(u[:1].expand(5, 3, 70).permute(1, 2, 0)), layer(u[:1].repeat(5, 1, 1).permute(1, 2, 0))
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 0),
        ("state", 7),
        ("state", 0),
        ("init", "line"),
        ("direction", "backward"),
        ("join", "add"),
        ("discretisation", "euler"),
        ("dt_min", 0.0),
        ("dt_min", 1.0),
    ],
)
def test_impossible_options_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}={value!r} is not valid: must be"):
        S4D(**{"width": 4, field: value})


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 5), (2, 0, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"u\.shape=.* is not valid"):
        S4D(3, 4)(torch.zeros(shape))


def test_integer_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match=r"u\.dtype=torch\.int64 is not valid"):
        S4D(3, 4)(torch.zeros(1, 2, 3, dtype=torch.int64))
