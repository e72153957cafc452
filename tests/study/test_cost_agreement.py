"""The closed form, torch's counter on meta and fvcore with handles count the same MACs, and fail loudly when blind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from models import backbones, named_config
from models.denoiser import DenoiserConfig
from models.macs import Macs, real_fft
from study.cost import fvcore_counter
from study.cost.agreement import compare, require_agreement
from study.cost.operators import UnknownOperatorError
from study.cost.tracer import trace, trace_network, training_macs

TINY = [f"{name}-tiny" for name, backbone in backbones().items() if "tiny" in backbone.sizes]
BASE = ["dit-b/4", "dis-b/4", "diffussm-s", "patchssm-s", "unet-small"]


@pytest.mark.parametrize("name", [*TINY, *BASE])
def test_three_methods_agree(name):
    require_agreement(named_config(name))


@pytest.mark.parametrize("name", ["dit-xl/2", "dis-h/2", "diffussm-xl", "unet-adm-256", "unet-ldm-8"])
def test_closed_form_agrees_with_torch_where_nothing_could_be_run(name):
    require_agreement(named_config(name), run=False)


def _without(operator):
    handles = fvcore_counter.HANDLES | fvcore_counter.own_handles()
    return {name: handle for name, handle in handles.items() if name != operator}


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("dit-tiny", "aten::scaled_dot_product_attention"),
        ("dis-tiny", "ssm::selective_scan"),
        ("dit-tiny", "aten::linear"),
    ],
)
def test_a_missing_handle_is_an_error_that_names_operator_and_module(name, operator):
    with pytest.raises(UnknownOperatorError, match=rf"{operator} in module \w*blocks\.0"):
        compare(named_config(name), handles=_without(operator))


class _Fourier(nn.Module):
    """A long convolution by real transforms, with a complex product between."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 32))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        u = x.flatten(1, 2)[:, :3, :32]
        spectrum = torch.fft.rfft(u, n=64) * torch.fft.rfft(self.kernel, n=64)
        return torch.fft.irfft(spectrum, n=64)[..., :32]


CONFIG = named_config("dit-tiny", channels=4, size=(32, 32))
FOURIER = Macs(fft=2 * real_fft(64, 3) + 3 * 3 * 33, kernel=real_fft(64, 3))


def test_both_tracers_count_transforms_and_complex_products_and_set_weights_apart():
    for seen in (trace_network(_Fourier().to("meta"), CONFIG).macs, fvcore_counter.count_network(_Fourier(), CONFIG)):
        assert (seen.fft, seen.kernel) == (FOURIER.fft, FOURIER.kernel)


@pytest.mark.parametrize("operator", ["aten::fft_rfft", "aten::fft_irfft"])
def test_a_missing_fft_handle_is_an_error(operator):
    with pytest.raises(UnknownOperatorError, match=operator):
        fvcore_counter.count_network(_Fourier(), CONFIG, _without(operator))


def test_a_wrong_closed_form_is_reported_part_by_part():
    agreement = compare(named_config("dit-tiny"), run=False)
    wrong = type(agreement)(agreement.closed_form + Macs(matmul=10**6), agreement.torch, None)
    (line,) = wrong.disagreements()
    assert line.startswith("matmul: closed form 3,469,888, torch 2,469,888")


@torch.library.custom_op("test_cost::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x.clone()


@opaque.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class _Call(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.inner(x)


class _Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.test_cost.opaque(x)


def test_an_operator_nobody_knows_is_an_error_naming_it_and_its_module():
    with pytest.raises(UnknownOperatorError, match=r"test_cost::opaque in module _Call\.inner yields 4096 elements"):
        trace_network(_Call(_Opaque()).to("meta"), CONFIG)
    with pytest.raises(UnknownOperatorError, match="test_cost::opaque in module inner yields 4096 elements"):
        fvcore_counter.count_network(_Call(_Opaque()), CONFIG)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dy):
        return dy * 2


def test_a_bare_autograd_function_is_an_error_for_fvcore():
    with pytest.raises(UnknownOperatorError, match="prim::PythonOp"):
        fvcore_counter.count_network(_Call(_Double.apply), CONFIG)


def test_fused_fast_paths_do_not_hide_work():
    """In eval mode without gradients torch would swap this layer for one opaque call and count nothing."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self.layer(x[:, 0])

    with torch.no_grad():
        macs = trace_network(Encoder().eval().to("meta"), CONFIG).macs
    assert macs.matmul == 32 * (4 * 32 * 32 + 2 * 32 * 64)
    assert macs.attention == 2 * 32 * 32 * 32


@dataclass(frozen=True)
class _Einsum:
    equation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    macs: int


@pytest.mark.parametrize(
    "case",
    [
        _Einsum("bcij,cd->bdij", (4, 7), torch.float32, 4 * 7 * 1024),
        _Einsum("bc...,cd->b...d", (4, 7), torch.float32, 4 * 7 * 1024),
        _Einsum("bcij,cd->bdij", (4, 7), torch.complex64, 3 * 4 * 7 * 1024),
    ],
    ids=str,
)
def test_einsum_is_exact(case):
    """fvcore alone reads numpy's report, rounded to four digits; torch alone takes complex numbers for real ones."""

    class Contract(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(*case.shape, dtype=case.dtype))

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.einsum(case.equation, x.to(case.dtype), self.weight)

    assert fvcore_counter.count_network(Contract(), CONFIG).matmul == case.macs
    assert trace_network(Contract().to("meta"), CONFIG).macs.matmul == case.macs


@pytest.mark.parametrize("name", ["dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny"])
def test_the_exact_backward_pass_is_two_forward_passes_but_for_the_first_layer(name):
    config = named_config(name)
    exact, forward = training_macs(config).matmul, config.macs().total
    assert 2.7 < exact / forward <= 3.0


def test_modules_add_up_to_the_network():
    traced = trace(named_config("dit-tiny"))
    children = [path for path in traced.by_module if path and "." not in path]
    blocks = [path for path in traced.by_module if path.count(".") == 1 and path.startswith("blocks.")]
    assert len(blocks) == 3
    assert traced.by_module[""] == traced.macs
    assert sum(traced.by_module[path].total for path in [*children, *blocks]) == traced.macs.total


def test_every_backbone_has_a_config_of_its_own():
    kinds = [backbone.config for backbone in backbones().values()]
    assert len(set(kinds)) == len(kinds)
    assert all(issubclass(kind, DenoiserConfig) for kind in kinds)
