"""The selective scan equals the reference's arrays, the textbook loop, and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.ssm import selective_scan as module
from models.ssm.selective_scan import scan_macs, selective_scan, selective_scan_loop
from tests.parity_arrays import assert_forward, assert_gradient, load_parity

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def arrays(
    batch: int = 2,
    channels: int = 6,
    length: int = 19,
    states: int = 4,
    groups: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> dict[str, Tensor]:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    generator = torch.Generator().manual_seed(length)
    u, delta, z = (randn(batch, channels, length) for _ in range(3))
    group = () if groups is None else (groups,)
    B, C = (randn(batch, *group, states, length) for _ in range(2))
    A = -(8 * torch.rand(channels, states, generator=generator, dtype=torch.float64)).to(device, dtype)
    return {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": randn(channels), "z": z, "delta_bias": randn(channels)}


def with_gradients(scan: Any, given: dict[str, Tensor], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    y = scan(**leaves, **options)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    return y.detach(), dict(zip(leaves, torch.autograd.grad((y * weights).sum(), list(leaves.values())), strict=True))


def assert_same(given: dict[str, Tensor], tolerance: float, **options: Any) -> None:
    """Values and gradients of the scan and the loop, relative to the largest of each."""
    (y, grads), (expected, expected_grads) = (
        with_gradients(scan, given, **options) for scan in (selective_scan, selective_scan_loop)
    )
    for name, a, b in [("y", y, expected), *((n, grads[n], expected_grads[n]) for n in grads)]:
        torch.testing.assert_close(
            a, b, rtol=0, atol=tolerance * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
        )


def test_equals_the_reference() -> None:
    parity = load_parity("selective_scan")
    leaves = {name: parity.tensor(f"in/{name}").clone().requires_grad_() for name in NAMES}
    y = selective_scan(**leaves)
    assert_forward(y, parity.outputs["y"])
    (y * parity.tensor("grad/w")).sum().backward()
    for name, leaf in leaves.items():
        assert_gradient(leaf.grad, parity.tensor(f"grad/{name}"), name)


def test_equals_the_reference_in_other_forms() -> None:
    parity = load_parity("selective_scan")
    given = {name: parity.tensor(f"in/{name}") for name in NAMES}
    bare = {name: given[name] for name in ("u", "delta", "A", "B", "C", "delta_bias")}
    assert_forward(selective_scan(**bare), parity.outputs["y_noz_noD"], "without gate and skip")
    raw = {name: given[name] for name in ("u", "A", "B", "C", "D")} | {"delta": given["delta"].abs()}
    assert_forward(selective_scan(**raw, softplus=False), parity.outputs["y_nosoftplus"], "without softplus")
    turned = {name: x.flip(-1) if name in ("u", "delta", "B", "C", "z") else x for name, x in given.items()}
    assert_forward(selective_scan(**turned).flip(-1), parity.outputs["y_reverse"], "reversed")
    grouped = given | {name: parity.tensor(f"in/{name}_grouped") for name in ("B", "C")}
    assert_forward(selective_scan(**grouped), parity.outputs["y_grouped"], "grouped B and C")


def test_last_state_equals_the_reference() -> None:
    """Read through C = e_n, which shows state n alone."""
    parity = load_parity("selective_scan")
    bare = {name: parity.tensor(f"in/{name}") for name in ("u", "delta", "A", "B", "delta_bias")}
    expected = parity.outputs["last_state"]  # (B, E, N)
    for n in range(expected.shape[-1]):
        C = torch.zeros_like(bare["B"])
        C[:, n] = 1
        assert_forward(selective_scan(**bare, C=C)[..., -1], expected[..., n], f"state {n}")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9, 10, 16, 17, 31, 97, 257])
def test_equals_the_loop(length: int) -> None:
    given = arrays(length=length)
    assert_same(given, 2e-6)
    assert_same({name: x.double() for name, x in given.items()}, 1e-13)


@pytest.mark.parametrize("tile", [1, 200, 1000])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_groups_and_tiles_do_not_matter(groups: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_STATES_CPU", tile)
    assert_same(arrays(batch=3, groups=groups, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("groups", [None, 2])
def test_gradients_equal_finite_differences(length: int, groups: int | None) -> None:
    given = arrays(batch=1, channels=2, length=length, states=3, groups=groups, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in given.values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x), leaves)
    optional = leaves[:5]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, softplus=False), optional)


def test_extreme_rates_neither_overflow_nor_lose_the_state() -> None:
    """Steps from 0 (the state stays for ever) to ones that wipe it, side by side in one chunk."""
    given = arrays(length=300, dtype=torch.float64)
    given["delta"] = torch.where(torch.rand(given["delta"].shape) < 0.5, 0.0, 100 * given["delta"].abs())
    given.pop("delta_bias")
    assert_same(given, 1e-12, softplus=False)
    assert_same({name: x.float() for name, x in given.items()}, 1e-5, softplus=False)


def test_float32_is_as_exact_as_the_loop() -> None:
    given = arrays(channels=16, length=257, states=16)
    exact = selective_scan_loop(**{name: x.double() for name, x in given.items()})
    ours, loop = ((scan(**given) - exact).abs().max() for scan in (selective_scan, selective_scan_loop))
    assert ours < 2e-6 * exact.abs().max()
    assert ours < 4 * loop


def test_autocast_changes_nothing_inside() -> None:
    given = arrays()
    y, grads = with_gradients(selective_scan, given)
    with torch.autocast("cpu", torch.bfloat16):
        y_auto, grads_auto = with_gradients(selective_scan, given)
    assert y_auto.dtype == torch.float32
    assert torch.equal(y, y_auto)
    assert all(torch.equal(grads[name], grads_auto[name]) for name in NAMES)


def test_half_inputs_are_scanned_in_float32() -> None:
    given = {name: x.bfloat16() for name, x in arrays(length=200).items()}
    y = selective_scan(**given)
    exact = selective_scan_loop(**{name: x.float() for name, x in given.items()})
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=2**-8, atol=1e-5)  # one rounding, at the end


def test_backward_keeps_no_states() -> None:
    given = arrays(batch=2, channels=8, length=400, states=16)
    leaves = {name: x.requires_grad_() for name, x in given.items()}
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.__setitem__(x.data_ptr(), x.numel()), x)[1], lambda x: x
    ):
        selective_scan(**leaves)
    states, inputs = 2 * 8 * 16 * 400, sum(x.numel() for x in given.values())
    assert sum(kept.values()) < states / 20 + 3 * inputs
    assert 2 * 8 * 16 * 20 in kept.values()  # the states that enter 20 chunks


@pytest.mark.parametrize("groups", [1, 2])
def test_operator_is_well_formed(groups: int) -> None:
    """Schema, fake implementation, autograd registration, and tracing with static shapes."""
    given = arrays(length=7, groups=groups)
    tensors = [given[name].requires_grad_() for name in NAMES[:6]]
    tensors[1] = given["delta"].detach().abs().requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.ssm.selective_scan, tensors, test_utils=checks)


def test_counted_macs_are_the_formula() -> None:
    given = {name: x.to("meta").requires_grad_() for name, x in arrays(batch=3, channels=8, length=66).items()}
    with FlopCounterMode(display=False) as counter:
        y = selective_scan(**given)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * 3 * scan_macs(66, 8, 4) == 2 * 3 * (9 * 66 * 8 * 4 // 2 + 66 * 8)
    assert counter.get_total_flops() == 3 * forward


def test_counting_on_a_real_device_sees_the_operator_not_its_inside() -> None:
    with FlopCounterMode(display=False) as counter:
        selective_scan(**arrays())
    assert counter.get_total_flops() == 2 * 2 * scan_macs(19, 6, 4)


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("u", (2, 6)),
        ("u", (2, 6, 0)),
        ("delta", (2, 6, 18)),
        ("A", (5, 4)),
        ("B", (2, 3, 19)),
        ("B", (2, 4, 4, 19)),
        ("C", (2, 2, 4, 19)),
        ("D", (5,)),
        ("z", (1, 6, 19)),
        ("delta_bias", (1, 6)),
    ],
)
def test_refusals(field: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"^{field}\.shape=.*must be") as refusal:
        selective_scan(**arrays() | {field: torch.zeros(shape)})
    assert "\n" not in str(refusal.value)


def test_equals_the_cuda_kernel() -> None:
    pytest.importorskip("mamba_ssm", reason="mamba_ssm is not installed")
    if not torch.cuda.is_available():
        pytest.skip("mamba_ssm's kernel needs a GPU")
    given = arrays(length=257, states=16, device="cuda")
    assert module._cuda_kernel() is not None
    y, grads = with_gradients(selective_scan, given)
    expected, expected_grads = with_gradients(selective_scan_loop, given)
    assert_forward(y, expected)
    for name in NAMES:
        assert_gradient(grads[name], expected_grads[name], name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_equals_the_loop_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cuda_kernel", lambda: None)
    assert_same(arrays(length=257, states=16, device="cuda"), 1e-5)
