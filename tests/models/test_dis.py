"""DiS equals the released code, its parameter and MAC tables, and the tracer's counts."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus
from torch.utils.flop_counter import FlopCounterMode

from models import build, named_config
from models.dis import SIZES, Block, DiS, DiSConfig, DropPath
from models.ssm.selective_scan import scan_macs
from tests.models.conformance import awake, inputs
from tests.parity_arrays import ParityArrays, assert_forward, assert_matches_reference, captured, load_parity

# 1000 classes and the null class, 4 channels: parameters on 32 x 32 and on 64 x 64.
PARAMETERS = {
    "s/4": (29_115_184, 29_185_840),
    "s/2": (29_132_752, 29_415_376),
    "b/4": (121_126_784, 121_274_240),
    "b/2": (121_163_552, 121_753_376),
    "m/4": (231_377_792, 231_525_248),
    "m/2": (231_414_560, 232_004_384),
    "l/4": (407_200_896, 407_397_504),
    "l/2": (407_249_952, 408_036_384),
    "h/4": (906_892_928, 907_187_840),
    "h/2": (906_966_560, 908_146_208),
}

# GMACs on 32 x 32: linear, depthwise convolution, one unit L E N of all scans, and linear + convolution + 3 units;
# that total on 64 x 64.
GMACS = {
    "s/4": (1.7506, 0.0097, 0.0389, 1.877, 7.333),
    "s/2": (6.8259, 0.0380, 0.1519, 7.320, 29.104),
    "b/4": (7.4379, 0.0203, 0.0811, 7.701, 30.089),
    "b/2": (29.0300, 0.0793, 0.3170, 30.060, 119.525),
    "m/4": (14.6007, 0.0397, 0.1590, 15.117, 59.078),
    "m/2": (57.0301, 0.1553, 0.6214, 59.050, 234.808),
    "l/4": (25.8112, 0.0530, 0.2119, 26.500, 103.561),
    "l/2": (100.8303, 0.2071, 0.8285, 103.523, 411.653),
    "h/4": (57.7477, 0.0795, 0.3179, 58.781, 229.712),
    "h/2": (225.6160, 0.3107, 1.2428, 229.655, 913.209),
}

TINY = SIZES["tiny"]
ABLATIONS: list[dict[str, Any]] = [
    {"skip": "add"},
    {"skip": "none"},
    {"condition": "adaln"},
    {"direction": "forward"},
    {"condition": "adaln", "classes": 0},
    {"expand": 1, "conv": 2, "state": 4, "P": 4},
]


def reference_dis(parity: ParityArrays) -> DiS:
    cfg = parity.cfg
    config = DiSConfig(
        size=cfg["img_size"],
        channels=cfg["channels"],
        classes=max(cfg["num_classes"], 0),
        P=cfg["patch_size"],
        depth=cfg["depth"],
        width=cfg["embed_dim"],
    )
    model = DiS(config)
    model.load_reference_state_dict(parity.params)
    return model.eval()


@pytest.mark.parametrize("name", ["dis_cond_p2", "dis_uncond_p4"])
def test_equals_the_released_code(name: str) -> None:
    parity = load_parity(name)
    model = reference_dis(parity)
    with captured(model, "in_blocks.0.norm", "in_blocks.0.mixer") as seen:
        assert_matches_reference(model, parity)
    assert_forward(seen["in_blocks.0.norm"], parity.tensor("mid/in0_mixer_in"), "the first mixer's input")
    assert_forward(seen["in_blocks.0.mixer"], parity.tensor("mid/in0_mixer_out"), "the first mixer's output")


def test_released_checkpoints_load_from_a_wrapper_and_half_ones_do_not() -> None:
    parity = load_parity("dis_cond_p2")
    model = reference_dis(parity)
    wrapped = OrderedDict((f"module.{key}", value) for key, value in parity.params.items())
    other = DiS(model.config)
    other.load_reference_state_dict(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"unexpected .*A_b_log"):
        DiS(replace(model.config, direction="forward")).load_reference_state_dict(parity.params)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts(size: str) -> None:
    for side, published in zip((32, 64), PARAMETERS[size], strict=True):
        with torch.device("meta"):
            model = build(f"dis-{size}", size=side)
        assert sum(p.numel() for p in model.parameters()) == published
    assert PARAMETERS.keys() == SIZES.keys() - {"tiny", "tiny-adaln"}


@pytest.mark.parametrize("size", GMACS)
def test_macs_equal_the_table(size: str) -> None:
    config = SIZES[size]
    linear, conv, unit, total, total_64 = GMACS[size]
    assert [linear, conv, unit] == [round(part / 1e9, 4) for part in three_unit_parts(config, (32, 32))]
    for side, published in ((32, total), (64, total_64)):
        parts = three_unit_parts(config, (side, side))
        assert round((parts[0] + parts[1] + 3 * parts[2]) / 1e9, 3) == published


def three_unit_parts(config: DiSConfig, size: tuple[int, int]) -> tuple[int, int, int]:
    """Linear, depthwise convolution, and L E N of all scans: the 9/2 L E N + L E of `macs` without its skip."""
    macs, L, E, scans = config.macs(size), config.tokens(size), config.inner, 2 * config.blocks
    unit, remainder = divmod(2 * (macs.scan - scans * L * E), 9)
    assert remainder == 0
    conv = scans * L * E * config.conv
    return macs.matmul - conv, conv, unit


@pytest.mark.parametrize("size", [*GMACS, "tiny-adaln"])
def test_macs_equal_the_tracer(size: str) -> None:
    assert_traced(SIZES[size])


@pytest.mark.parametrize("change", ABLATIONS, ids=str)
def test_macs_of_the_options_equal_the_tracer(change: dict[str, Any]) -> None:
    assert_traced(replace(TINY, **{"size": (8, 16), "learn_sigma": True} | change))


def assert_traced(config: DiSConfig) -> None:
    """Products to the integer, and the scans by the count registered with the operator."""
    with torch.device("meta"):
        model, x, t = DiS(config).eval(), torch.empty(1, config.channels, *config.size), torch.zeros(1)
        y = torch.zeros(1, dtype=torch.int64) if config.classes else None
        with FlopCounterMode(display=False) as counter:
            model(x, t, y)
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    scans = flops.pop("ssm.selective_scan")
    macs = config.macs()
    assert 2 * macs.matmul == sum(flops.values())
    assert 2 * macs.scan == scans
    assert macs.attention == macs.fft == macs.kernel == 0
    directions = 2 if config.direction == "both" else 1
    assert macs.scan == config.blocks * directions * scan_macs(config.tokens(), config.inner, config.state)


def test_tokens_are_label_time_and_patches() -> None:
    assert SIZES["s/2"].tokens() == 2 + 256
    assert replace(SIZES["s/2"], classes=0).tokens() == 1 + 256
    assert replace(SIZES["s/2"], condition="adaln").tokens() == 256
    assert SIZES["s/2"].tokens((64, 32)) == 2 + 512
    assert [SIZES[size].blocks for size in ("s/2", "h/2")] == [25, 49]


@pytest.mark.parametrize("change", [{}, *ABLATIONS], ids=str)
def test_options_train_a_step_and_differ(change: dict[str, Any]) -> None:
    base, config = awake(TINY, "dis-tiny").eval(), replace(TINY, **change)
    model = awake(config, "dis-tiny")
    x, t, y = inputs(TINY)
    labels = y if config.classes else None
    before = model.eval()(x, t, labels)
    assert change == {} or not torch.allclose(before, base(x, t, y), atol=1e-3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = (model.train()(x, t, labels) - x).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    optimiser.step()
    assert (model(x, t, labels) - x).square().mean() < loss


def test_forward_direction_is_causal() -> None:
    """A change of the last patch reaches the first through the backward scan, and only through it."""
    x, t, y = inputs(TINY)
    changed = x.clone()
    changed[..., -2:, -2:] += 1
    for direction, reaches in (("both", True), ("forward", False)):
        model = awake(replace(TINY, direction=direction), "dis-tiny").eval()
        first = [model(image, t, y)[..., :-2, :].detach() for image in (x, changed)]
        assert torch.equal(*first) != reaches
        assert model.sees_both_ends == reaches


def test_adaln_gates_start_shut() -> None:
    """At first no mixer contributes: only the skips' own linear layers, whose biases are zero."""
    torch.manual_seed(0)
    model = DiS(replace(TINY, condition="adaln")).eval()
    with captured(model, "norm_f", "patch_embed") as seen:
        model(*inputs(TINY))
    alone = model.norm_f(seen["patch_embed"] + model.pos_embed)
    torch.testing.assert_close(seen["norm_f"], alone)


def test_skips_carry_mixer_outputs_to_their_mirror_block() -> None:
    """Without its skip each out-block sees another input; a skip of zeros through zero weights changes nothing."""
    model = awake(TINY, "dis-tiny").eval()
    batch = inputs(TINY)
    received: list[torch.Tensor] = []
    for block in model.out_blocks:
        assert isinstance(block, Block)
        block.skip_linear.register_forward_pre_hook(lambda _, args: received.append(args[0].detach()))
    with captured(model, "in_blocks.0.mixer", "in_blocks.1.mixer") as seen:
        model(*batch)
    for joined, name in zip(received, ("in_blocks.1.mixer", "in_blocks.0.mixer"), strict=True):
        assert torch.equal(joined[..., TINY.width :], seen[name])


def test_initialisation_is_the_released_code_s() -> None:
    torch.manual_seed(0)
    config = replace(SIZES["s/4"], depth=4)
    model = DiS(config)
    assert bool((model.pos_embed == 0).all())
    torch.testing.assert_close(model.label_emb.embedding_table.weight.std().item(), 0.02, rtol=0.02, atol=0)
    mixer = model.mid_block.mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17.0).expand(736, 16))
    assert torch.equal(mixer.A_b_log, mixer.A_log)
    assert bool((mixer.D == 1).all() and (mixer.D_b == 1).all())
    dt = softplus(mixer.dt_proj.bias)
    assert 0.999e-3 < dt.min() < 2e-3
    assert 0.05 < dt.max() < 0.1001
    assert bool((mixer.dt_proj_b.bias == 0).all())
    bound = 1 / math.sqrt(config.dt_rank)
    assert 0.95 * bound < mixer.dt_proj.weight.abs().max() <= bound
    bound = 1 / math.sqrt(config.inner * config.depth)
    assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound


def test_drop_path_grows_with_depth_and_is_off_in_evaluation() -> None:
    config = replace(TINY, drop_path=0.3)
    torch.manual_seed(0)
    model = DiS(config)
    rates = [block.drop_path.rate for block in [*model.in_blocks, model.mid_block, *model.out_blocks]]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.2, 0.3])
    assert model.drop_path.rate == 0.3
    assert SIZES["h/2"].drop_path == 0.1
    batch = inputs(config)
    assert not torch.equal(model(*batch), model(*batch))
    assert torch.equal(model.eval()(*batch), model(*batch))


def test_drop_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert bool((out == out[:, :1, :1]).all())  # whole images
    assert out.mean() == pytest.approx(1, abs=0.03)


def test_rates_and_skips_of_the_scan_do_not_decay() -> None:
    for direction, names in (("both", {"A_log", "A_b_log", "D", "D_b"}), ("forward", {"A_log", "D"})):
        model = DiS(replace(TINY, direction=direction))
        ssm = {id(p) for group in model.parameter_groups() if not group.weight_decay for p in group.parameters}
        named = {key for key, p in model.named_parameters() if id(p) in ssm}
        assert named == {key for key, _ in model.named_parameters() if key.rsplit(".", 1)[-1] in names}


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_half_precision_keeps_the_stream_in_float32(weights: torch.dtype) -> None:
    """Both ways to it: autocast, and a network whose weights are bfloat16."""
    model, (x, t, y) = awake(TINY, "dis-tiny").eval(), inputs(TINY)
    exact = model(x, t, y).detach()
    residuals: list[torch.dtype] = []
    model.out_blocks[1].register_forward_pre_hook(lambda _, args: residuals.append(args[1].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        out = model.to(weights)(x.to(weights), t, y)
    assert out.dtype == torch.bfloat16
    assert residuals == [torch.float32]
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("P", 3),
        ("P", 0),
        ("depth", 0),
        ("width", 0),
        ("width", 65),
        ("state", 0),
        ("conv", 0),
        ("expand", 0),
        ("skip", "cat"),
        ("condition", "token"),
        ("direction", "backward"),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
    ],
)
def test_refusals(field: str, value: object) -> None:
    named = "size" if (field, value) == ("P", 3) else field
    with pytest.raises(ValueError, match=rf"^{named}=.*must be") as refusal:
        named_config("dis-tiny", **{field: value})
    assert "\n" not in str(refusal.value)


def test_a_size_its_patches_do_not_fill_is_refused_wherever_it_is_asked_about() -> None:
    for ask in (TINY.tokens, TINY.macs):
        with pytest.raises(ValueError, match=r"^size=\(8, 9\) .*P=2"):
            ask((8, 9))
