"""The questions every backbone must answer. `check(name)` asks them all of one small named size.

Kept apart from its test so that a new backbone, wherever it is written, can be asked the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import TIME_SCALE, Denoiser, DenoiserConfig, split_name

MATRIX_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.convolution", "aten._scaled_dot_product")
BATCH = 3


def fresh(config: DenoiserConfig, name: str, seed: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return split_name(name)[0].denoiser(config)


def awake(config: DenoiserConfig, name: str, seed: int = 0) -> Denoiser:
    """The network with every parameter perturbed, so that nothing hides behind a zero initialisation."""
    model = fresh(config, name, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(config: DenoiserConfig, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, config.channels, *config.size, generator=generator)
    t = torch.tensor([0, 400, TIME_SCALE - 1])
    y = torch.randint(config.classes, (BATCH,), generator=generator) if config.classes else None
    return x, t, y


@torch.no_grad()
def asks_shape_and_dtype(name: str, config: DenoiserConfig) -> None:
    model = awake(config, name).eval()
    x, t, y = inputs(config)
    for out in (model(x, t, y), model(x, t.float() + 0.5, y)):
        assert out.shape == (BATCH, config.out_channels, *config.size)
        assert out.dtype == x.dtype
        assert out.isfinite().all()


def asks_gradient_to_every_parameter(name: str, config: DenoiserConfig) -> None:
    """In float64 and relative to the largest, for what is mathematically zero is only rounded to 1e-16 of it."""
    model = awake(config, name).double().train()
    x, t, y = inputs(config)
    if y is not None and config.has_null_class:
        y = torch.tensor([0, 1, config.classes])
    out = model(x.double(), t, y)
    out.mul(torch.randn(out.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    sizes = {key: 0.0 if grad is None else float(grad.abs().max()) for key, grad in trained.items()}
    for key, grad in trained.items():
        assert grad is not None, f"{key} takes no part in the output"
        assert grad.isfinite().all(), f"{key} has a non-finite gradient"
        assert sizes[key] > 1e-9 * max(sizes.values()), f"{key} has a zero gradient, but for rounding"


@torch.no_grad()
def asks_zero_initialised_output(name: str, config: DenoiserConfig) -> None:
    model = fresh(config, name).eval()
    out = model(*inputs(config))
    assert bool((out == 0).all()) == type(model).zero_init_output


@torch.no_grad()
def asks_determinism(name: str, config: DenoiserConfig) -> None:
    batch = inputs(config)
    first, second = awake(config, name).eval(), awake(config, name).eval()
    assert torch.equal(first(*batch), first(*batch)), "the same call twice differs"
    assert torch.equal(first(*batch), second(*batch)), "the same seed twice differs"


@torch.no_grad()
def asks_independent_images(name: str, config: DenoiserConfig) -> None:
    """No image of a batch may see another."""
    model = awake(config, name).eval()
    x, t, y = inputs(config)
    whole = model(x, t, y)
    alone = model(x[1:2], t[1:2], None if y is None else y[1:2])
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@torch.no_grad()
def asks_time_and_label_matter(name: str, config: DenoiserConfig) -> None:
    model = awake(config, name).eval()
    x, t, y = inputs(config)
    x, t = x[:1], t[1:2]
    y = None if y is None else y[:1]
    base = model(x, t, y)
    assert differs(base, model(x, t + 100, y)), "the output ignores t"
    if y is not None:
        assert differs(base, model(x, t, (y + 1) % config.classes)), "the output ignores y"
    if y is not None and config.has_null_class:
        null = torch.full_like(y, config.classes)
        others = [model(x, t, torch.full_like(y, label)) for label in range(min(config.classes, 10))]
        assert all(differs(model(x, t, null), other) for other in others), "the null class is one of the classes"


def asks_label_dropout(name: str, config: DenoiserConfig) -> None:
    if not config.has_null_class:
        return
    model = fresh(replace(config, class_dropout=0.5), name)
    y = torch.zeros(4000, dtype=torch.int64)
    dropped = model.drop_labels(y, torch.Generator().manual_seed(0))
    assert set(dropped.tolist()) == {0, config.classes}
    assert abs(float((dropped != 0).float().mean()) - 0.5) < 0.05


def asks_refusals(name: str, config: DenoiserConfig) -> None:
    model = fresh(config, name)
    x, t, y = inputs(config)
    bad: list[tuple[str, tuple[object, ...]]] = [
        ("x.shape", (x[0], t, y)),
        ("x.shape", (torch.cat([x, x], dim=1), t, y)),
        ("x.shape", (x[..., :-1], t, y)),
        ("x.dtype", (x.double(), t, y)),
        ("x.dtype", (x.long(), t, y)),
        ("t.shape", (x, t[:1], y)),
        ("t", (x, t + TIME_SCALE, y)),
        ("t", (x, t - 1, y)),
        ("y", (x, t, None if config.classes else t)),
    ]
    if y is not None:
        bad += [("y", (x, t, y - 1 - y.min())), ("y", (x, t, y + config.label_rows)), ("y.dtype", (x, t, y.float()))]
    for field, arguments in bad:
        with pytest.raises(ValueError, match=rf"^{field}=.*must be") as refusal:
            model(*arguments)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="is not valid: must be"):
        replace(config, size=(0, 8))


def asks_compile(name: str, config: DenoiserConfig) -> None:
    model = awake(config, name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    batch = inputs(config)
    expected, got = model(*batch), compiled(*batch)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * scale)
    (grad,) = torch.autograd.grad(expected.sum(), [next(p for p in model.parameters() if p.requires_grad)])
    (grad_compiled,) = torch.autograd.grad(got.sum(), [next(p for p in model.parameters() if p.requires_grad)])
    torch.testing.assert_close(grad_compiled, grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))
    torch.compiler.reset()


@torch.no_grad()
def asks_checkpoint_round_trip(name: str, config: DenoiserConfig) -> None:
    model, batch = awake(config, name).eval(), inputs(config)
    other = fresh(config, name, seed=5).eval()
    other(*batch)  # fill whatever it caches, so that stale caches show
    other.load_state_dict(load(save({key: value.contiguous() for key, value in model.state_dict().items()})))
    assert torch.equal(model(*batch), other(*batch))
    assert torch.equal(model(*batch), copy.deepcopy(model)(*batch))


@torch.no_grad()
def asks_reference_layout(name: str, config: DenoiserConfig) -> None:
    model, other, batch = awake(config, name).eval(), fresh(config, name, seed=5).eval(), inputs(config)
    published = {model.reference_key(key): value for key, value in model.state_dict().items()}
    other.load_reference_state_dict(published)
    assert torch.equal(model(*batch), other(*batch))
    two = {f"{prefix}.{key}": value for prefix in ("model", "ema") for key, value in published.items()}
    with pytest.raises(ValueError, match=r"holds 2 such networks, under ema\., model\."):
        other.load_reference_state_dict(two)
    published.pop(next(reversed(published)))
    with pytest.raises(ValueError, match="missing"):
        other.load_reference_state_dict(published)


def asks_parameter_groups(name: str, config: DenoiserConfig) -> None:
    model = fresh(config, name)
    grouped = [id(p) for group in model.parameter_groups() for p in group.parameters]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    model.requires_grad_(False)
    assert not any(group.parameters for group in model.parameter_groups()), "a frozen parameter is in a group"


def asks_both_ends(name: str, config: DenoiserConfig) -> None:
    """First and last corner pixels reach each other, unless the backbone says it is causal."""
    model = awake(config, name).eval()
    x, t, y = inputs(config)
    x = x.requires_grad_(True)
    reaches = []
    for here, there in (((0, 0), (-1, -1)), ((-1, -1), (0, 0))):
        (grad,) = torch.autograd.grad(model(x, t, y)[:, 0, here[0], here[1]].sum(), x)
        reaches.append(bool((grad[:, :, there[0], there[1]] != 0).any()))
    assert all(reaches) == model.sees_both_ends, f"first sees last, last sees first: {reaches}"


def asks_macs(name: str, config: DenoiserConfig) -> None:
    macs = config.macs()
    assert macs.matmul + macs.attention == counted_macs(name, config)
    assert all(count >= 0 for count in macs.parts().values())
    assert config.tokens() > 0


def counted_macs(name: str, config: DenoiserConfig) -> int:
    """Matmul, convolution and attention MACs of one image by torch's counter on the meta device.

    Fused attention decomposes into two batched products there, so one sum covers all three.
    """
    with torch.device("meta"):
        model = split_name(name)[0].denoiser(config).eval()
        x, t = torch.empty(1, config.channels, *config.size), torch.zeros(1)
        y = torch.zeros(1, dtype=torch.int64) if config.classes else None
        with FlopCounterMode(display=False) as counter:
            model(x, t, y)
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    return sum(count for op, count in flops.items() if op.startswith(MATRIX_PRODUCTS)) // 2


def differs(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-6 * a.abs().max())


QUESTIONS: list[Callable[[str, DenoiserConfig], None]] = [
    asked for label, asked in list(globals().items()) if label.startswith("asks_")
]
