"""The U-Nets equal the official codes, their published sizes and the tracer's counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import Denoiser, build, named_config
from models.layers.devices import norms_keep_channels_last, prefers_channels_last
from models.layers.unet_blocks import AttentionBlock, SpatialTransformer
from models.unet import SIZES, UNet, UNetConfig, layout
from tests.models.conformance import counted_macs
from tests.models.tracing import traced_elements
from tests.parity_arrays import ParityArrays, assert_forward, assert_matches_reference, load_parity

# Without the class embedder of latent diffusion, which lives beside its U-Net.
PARAMETERS = {
    "adm-64": 295_904_454,
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-512": 558_997_638,
    "ldm-4": 400_920_579,
    "ldm-8": 394_984_196,
}

# GMACs: linear + convolution, attention.
GMACS = {
    "adm-64": (103.4621, 6.2160),
    "adm-128": (301.0055, 5.9224),
    "adm-256": (1113.7426, 6.0901),
    "adm-512": (1976.2446, 6.0901),
    "ldm-4": (99.7698, 4.4543),
    "ldm-8": (53.9637, 3.0726),
}

TINY = SIZES["tiny"]
TINY_LDM = replace(
    TINY,
    width=64,
    norm_groups=32,
    attention="transformer",
    resample="conv",
    modulation="add",
    heads=2,
    head_width=None,
    context_width=24,
)


def reference_unet(parity: ParityArrays) -> UNet:
    cfg = parity.cfg
    head_width = cfg["num_head_channels"] if cfg["num_head_channels"] > 0 else None
    config = UNetConfig(
        size=cfg["image_size"],
        channels=cfg["in_channels"],
        learn_sigma=cfg["out_channels"] == 2 * cfg["in_channels"],
        classes=cfg["num_classes"] or 0,
        class_dropout=0.0,
        width=cfg["model_channels"],
        channel_mult=cfg["channel_mult"],
        res_blocks=cfg["num_res_blocks"],
        attention_factors=cfg["attention_resolutions"],
        attention_order="new" if cfg["use_new_attention_order"] else "legacy",
        heads=cfg["num_heads"] if head_width is None else None,
        head_width=head_width,
        resample="resblock" if cfg["resblock_updown"] else "conv",
        modulation="scale_shift" if cfg["use_scale_shift_norm"] else "add",
    )
    model = UNet(config)
    model.load_reference_state_dict(parity.params)
    return model


@pytest.mark.parametrize("name", ["adm_unet_a", "adm_unet_b"])
def test_equals_guided_diffusion(name: str) -> None:
    """`a`: scale-shift, resampling residual blocks, legacy order, labels; `b`: add, convolutions, new order, none."""
    parity = load_parity(name)
    assert_matches_reference(reference_unet(parity), parity)


def test_the_other_attention_order_loads_but_is_wrong() -> None:
    parity = load_parity("adm_unet_a")
    right = reference_unet(parity).eval()
    wrong = UNet(replace(right.config, attention_order="new")).eval()
    wrong.load_reference_state_dict(parity.params)
    with torch.no_grad():
        error = (wrong(**parity.inputs) - right(**parity.inputs)).abs().max()
    assert error > 0.01 * parity.outputs["forward"].abs().max()


def test_attention_orders_differ_by_a_permutation_of_the_packed_rows() -> None:
    legacy, new, heads, width = AttentionBlock(64, 4, "legacy", 8), AttentionBlock(64, 4, "new", 8), 4, 64
    for parameter in legacy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    new.load_state_dict(legacy.state_dict())
    rows = torch.arange(3 * width).reshape(heads, 3, -1).transpose(0, 1).flatten()
    new.qkv.load_state_dict({key: value[rows] for key, value in legacy.qkv.state_dict().items()})
    x = torch.randn(2, width, 4, 6)
    torch.testing.assert_close(new(x), legacy(x))


def test_spatial_transformer_equals_latent_diffusion() -> None:
    parity = load_parity("ldm_spatial_transformer")
    block = SpatialTransformer(width=32, heads=int(parity.tensor("heads")), context_width=24, norm_groups=32)
    block.load_state_dict(parity.params)
    with torch.no_grad():
        assert_forward(block(**parity.inputs), parity.outputs["y"])


def wave_(module: torch.nn.Module) -> None:
    """Fill every parameter with a closed form, so that arrays of a whole network need no weights beside them."""
    for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
        angles = torch.arange(parameter.numel(), dtype=torch.float64) * 1.7 + i
        parameter.data = (0.12 * angles.sin()).view_as(parameter).float()


def test_whole_u_net_equals_latent_diffusion() -> None:
    """Its `openaimodel.UNetModel` (commit a506df5) with the weights of `wave_`, on 8 x 12 images."""
    model, parity = UNet(replace(TINY_LDM, size=(8, 12))), load_parity("ldm_unet")
    wave_(model)
    assert_matches_reference(model, parity)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        model = build(f"unet-{size}")
    parameters = dict(model.named_parameters())
    embedder = parameters.pop("label_context.weight", None)
    assert (embedder is not None) == size.startswith("ldm")
    assert embedder is None or embedder.shape == (1001, 512)
    assert sum(p.numel() for p in parameters.values()) == PARAMETERS[size]


@pytest.mark.parametrize("size", GMACS)
def test_macs_are_the_published_ones(size: str) -> None:
    config = SIZES[size]
    macs = config.macs()
    counted = macs.attention - single_key_products(config)
    assert (round(macs.matmul / 1e9, 4), round(counted / 1e9, 4)) == GMACS[size]


def single_key_products(config: UNetConfig) -> int:
    """weights · value with one label token, 0.004 %: an einsum makes it elementwise, so published counts lack it."""
    if config.attention == "self":
        return 0
    attended = [layer for layer in layout(config).layers() if layer.kind == "attention"]
    return sum(config.tokens() // layer.factor**2 * layer.outputs for layer in attended)


@pytest.mark.parametrize("size", SIZES)
def test_macs_equal_the_tracer(size: str) -> None:
    config = SIZES[size]
    for each in {config, replace(config, size=(64, 64))}:
        macs = each.macs()
        assert macs.matmul + macs.attention == counted_macs(f"unet-{size}", each)
        assert macs == config.macs(each.size)


VARIANTS = {
    "convolutions": {"resample": "conv"},
    "add": {"modulation": "add"},
    "attention everywhere": {"attention_factors": (1, 2)},
    "attention at the bottom only": {"attention_factors": ()},
    "three levels, half width first": {"channel_mult": (1, 0.5, 2), "width": 64, "attention_factors": (2, 4)},
    "rectangular": {"size": (4, 10)},
    "unconditional": {"classes": 0},
}


@pytest.mark.parametrize("base", [TINY, replace(TINY_LDM, heads=1)], ids=["adm", "ldm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_and_costs_what_the_tracer_says(base: UNetConfig, variant: str) -> None:
    config = replace(base, **VARIANTS[variant])
    macs = config.macs()
    assert macs.matmul + macs.attention == counted_macs("unet-tiny", config)
    model = UNet(config)
    x, y = torch.randn(2, 1, *config.size), torch.tensor([3, 10]) if config.classes else None
    assert model(x, torch.tensor([1, 900]), y).abs().max() == 0
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = model(x, torch.tensor([1, 900]), y)
    assert out.shape == x.shape
    assert (out[0] != out[1]).any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_elementwise_counts_each_norm_modulation_sum_and_activation_once(variant: str) -> None:
    config = replace(TINY, **VARIANTS[variant])
    traced = traced_elements(UNet, config)
    assert config.macs().elementwise == traced["norm"] + traced["activation"] + traced["sum"]


def test_elementwise_of_a_transformer_adds_its_gates() -> None:
    traced = traced_elements(UNet, TINY_LDM)
    gates = traced["product"] - TINY_LDM.width // 2  # all products but the timestep's angles
    assert TINY_LDM.macs().elementwise == traced["norm"] + traced["activation"] + traced["sum"] + gates


def test_latent_diffusion_takes_the_label_as_context() -> None:
    """Gradients reach everything but the queries and keys of the cross-attention to a single token."""
    model = UNet(TINY_LDM)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = model(torch.randn(2, 1, 8, 8), torch.tensor([1, 900]), torch.tensor([3, 10]))
    (out * torch.randn_like(out)).sum().backward()
    idle = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-6}
    assert idle
    assert all(any(part in key for part in ("attn2.to_q", "attn2.to_k", "norm2")) for key in idle)
    assert set(model.label_context.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == {3, 10}


def test_loads_a_latent_diffusion_file_with_its_class_embedder_beside_the_network() -> None:
    source, target = UNet(TINY_LDM), UNet(TINY_LDM)
    state = {f"model.diffusion_model.{key}": value for key, value in source.state_dict().items()}
    state["cond_stage_model.embedding.weight"] = state.pop("model.diffusion_model.label_context.weight")
    state |= {"betas": torch.ones(1000), "first_stage_model.encoder.conv_in.weight": torch.ones(3)}
    target.load_reference_state_dict(state)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)
    del state["cond_stage_model.embedding.weight"]
    with pytest.raises(ValueError, match=r"missing label_context\.weight; unexpected nothing"):
        target.load_reference_state_dict(state)


def test_adm_has_no_null_class_and_latent_diffusion_does() -> None:
    assert [size for size, config in SIZES.items() if not config.has_null_class] == [
        "adm-64",
        "adm-128",
        "adm-256",
        "adm-512",
    ]


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = UNet(replace(TINY, dropout=0.5))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = torch.randn(1, 1, 8, 8), torch.tensor([5]), torch.tensor([2])
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("family", ["adm", "ldm"])
def test_channels_last_is_kept_throughout_and_changes_nothing(
    family: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: every norm and 2-D convolution gives channels side by side, and gradients are those of old."""
    changes = {"attention": "transformer", "resample": "conv", "modulation": "add"} if family == "ldm" else {}
    torch.manual_seed(0)
    network = build("unet-tiny", channels=channels, **changes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    given = torch.randn(2, channels, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 2])
    expected = gradients(network, *given)
    monkeypatch.setattr("models.unet.prefers_channels_last", lambda x: True)
    kept: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim == 4:
            kept.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in network.modules():
        if isinstance(module, nn.GroupNorm | nn.Conv2d):
            module.register_forward_hook(look)
    for actual, wanted in zip(gradients(network, *given), expected, strict=True):
        assert actual.is_contiguous()  # a fused optimiser walks through weights, gradients and moments side by side
        assert (actual - wanted).norm() <= 1e-5 * max(1.0, wanted.norm().item())
    assert len(kept) > 20
    assert all(kept)


def gradients(network: Denoiser, *given: Tensor) -> list[Tensor]:
    """The output, and the gradient of every parameter."""
    network.zero_grad()
    output = network(*given)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad for parameter in network.parameters() if parameter.grad is not None)]


def test_norms_on_a_cpu_keep_channels_last() -> None:
    assert norms_keep_channels_last(torch.device("cpu"))
    assert not prefers_channels_last(torch.zeros(1, 2, 2, 2))  # and yet it is not worth it there


def test_tokens_and_cost_grow_with_depth_and_area() -> None:
    assert TINY.tokens() == 64
    assert TINY.tokens((16, 8)) == 128
    assert replace(TINY, res_blocks=2).macs().total > TINY.macs().total
    assert TINY.macs((16, 16)).elementwise > 3 * TINY.macs().elementwise


def test_lists_from_a_config_file_mean_the_same_config() -> None:
    assert replace(TINY, channel_mult=[1, 2], attention_factors=[2]) == TINY
    assert named_config("unet-tiny", channel_mult=[1.0, 2.0]) == TINY


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("size", (8, 9), r"size=\(8, 9\) is not valid: must be divisible by 2"),
        ("size", (6, 6, 6), r"size=\(6, 6, 6\) is not valid"),
        ("width", 0, "width=0 is not valid: must be a positive integer"),
        ("width", 36, r"channel_mult=\(1, 2\) is not valid: must be .* that make width=36 a multiple of norm_groups=8"),
        ("norm_groups", 12, r"channel_mult=\(1, 2\) is not valid: must be .* width=32 a multiple of norm_groups=12"),
        ("norm_groups", 0, "norm_groups=0 is not valid: must be a positive integer"),
        ("channel_mult", (1, 1.3), r"channel_mult=\(1, 1.3\) is not valid"),
        ("channel_mult", (), r"channel_mult=\(\) is not valid"),
        ("channel_mult", (1, -1), r"channel_mult=\(1, -1\) is not valid"),
        ("res_blocks", 0, "res_blocks=0 is not valid: must be a positive integer"),
        ("attention_factors", (3,), r"attention_factors=\(3,\) is not valid: must be distinct downsample factors"),
        ("attention_factors", (4,), r"attention_factors=\(4,\) is not valid: .* among \[1, 2\]"),
        ("attention_factors", (2, 2), r"attention_factors=\(2, 2\) is not valid"),
        ("head_width", 24, r"head_width=24 is not valid: must be a divisor of the attended widths \[64\]"),
        ("head_width", 0, "head_width=0 is not valid"),
        ("head_width", None, "heads=None is not valid: must be None exactly when head_width=None is given"),
        ("heads", 4, "heads=4 is not valid: must be None exactly when head_width=16 is given"),
        ("attention", "spatial", "attention='spatial' is not valid: must be one of self, transformer"),
        ("attention_order", "legcy", "attention_order='legcy' is not valid.*did you mean 'legacy'"),
        ("resample", "pool", "resample='pool' is not valid: must be one of resblock, conv"),
        ("modulation", "shift_scale", "modulation='shift_scale' is not valid"),
        ("context_width", 0, "context_width=0 is not valid: must be a positive integer"),
        ("dropout", 1.0, r"dropout=1.0 is not valid: must be in \[0, 1\)"),
    ],
)
def test_refuses(field: str, value: object, valid: str) -> None:
    with pytest.raises(ValueError, match=f"^{valid}") as refusal:
        replace(TINY, **{field: value})
    assert "\n" not in str(refusal.value)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^heads=5 is not valid: must be a divisor of the attended widths \[64\]"):
        replace(TINY, heads=5, head_width=None)
