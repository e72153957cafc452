"""DiffuSSM against the paper's equations written out, its cost formula, and what its readings imply."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import build, named_config
from models.diffussm import TIME_FREQUENCIES, Block, DiffuSSM, DiffuSSMConfig, PatchSSMConfig
from models.layers.embeddings import sincos_2d
from models.ssm.s4d import S4D
from tests.models.conformance import awake, counted_macs, inputs
from tests.models.tracing import traced_call, traced_elements
from tests.parity_arrays import captured

TINY = named_config("diffussm-tiny")
assert isinstance(TINY, DiffuSSMConfig)


def block_and_inputs(config: DiffuSSMConfig, rows: int) -> tuple[Block, Tensor, Tensor]:
    torch.manual_seed(0)
    block = Block(config).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return block, torch.randn(2, rows, config.width).double(), torch.randn(2, config.width).double()


@pytest.mark.parametrize("M", [1, 2, 4])
def test_block_is_the_papers_equations(M: int) -> None:
    """U_l = s(Wup_k s(W0 I_j)), I' = s(Wdown_k Y_l) by offsets, O = W3(s(W2 I') * s(W1 I)), l = jM + k."""
    config = replace(TINY, M=M, width=16, size=(4, 4))
    J, D = 16 // M, 16
    block, x, condition = block_and_inputs(config, J)
    gelu = lambda z: F.gelu(z, approximate="tanh")  # noqa: E731
    shift, scale, gate = block.adaLN_modulation(condition).chunk(3, dim=1)
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    I = (x - mean) / (var + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]  # noqa: E741
    U = torch.zeros(2, J * M, D).double()
    for j in range(J):
        for k in range(M):
            hidden = gelu(I[:, j] @ block.w0.weight.T + block.w0.bias)
            U[:, j * M + k] = gelu(hidden @ block.up.weight[k] + block.up.bias[k])
    Y = block.mixer(U)
    assert Y.shape == (2, J * M, 2 * D)
    I_prime = torch.zeros(2, J, 2 * D).double()
    step = 2 * D // M
    for j in range(J):
        for k in range(M):
            I_prime[:, j, step * k : step * (k + 1)] = gelu(Y[:, j * M + k] @ block.down.weight[k] + block.down.bias[k])
    O = block.w3(gelu(block.w2(I_prime)) * gelu(block.w1(I)))  # noqa: E741
    torch.testing.assert_close(block(x, condition), x + gate[:, None] * O)


@pytest.mark.parametrize("M", [1, 2, 4])
@pytest.mark.parametrize("length", [1024, 4096])
def test_layer_costs_what_the_paper_says(M: int, length: int) -> None:
    """13 (L/M) D^2 + L D^2 multiply-accumulates outside the mixer, conditioning apart."""
    config = named_config("diffussm-xl", M=M)
    D = config.width
    layer = config.block_macs(length).matmul - 3 * D * D
    assert layer == 13 * (length // M) * D**2 + length * D**2


@pytest.mark.parametrize(
    ("side", "M", "gmacs"),
    [(32, 1, 551.7), (32, 2, 295.6), (32, 4, 167.5), (64, 1, 2206.9), (64, 2, 1182.3), (64, 4, 670.0)],
)
def test_xl_trunk_matches_the_published_formula(side: int, M: int, gmacs: float) -> None:
    config = named_config("diffussm-xl", M=M, size=(side, side))
    trunk = config.depth * (config.block_macs(config.tokens()).matmul - 3 * config.width**2)
    assert trunk / 1e9 == pytest.approx(gmacs, abs=0.06)


@pytest.mark.parametrize("M", [1, 2])
def test_xl_parameters_by_formula(M: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Per layer (13 + M) D^2 + 3 D^2 and the SSM; the paper says ~673M, which no reading of M gives exactly."""
    config = named_config("diffussm-xl", M=M)
    D, n, P, O = config.width, config.depth, config.P, config.out_channels  # noqa: E741
    with torch.device("meta"):
        total = sum(p.numel() for p in DiffuSSM(config).parameters())
    biases = D + M * D + 2 * D + 2 * D + 2 * D + D  # W0, Wup, Wdown, W1, W2, W3
    ssm = 2 * D * (1 + 4 * (config.state // 2)) + 2 * D  # per direction log dt, A (re, im), C (re, im); and D twice
    layer = (13 + M) * D**2 + biases + 3 * D**2 + 3 * D + ssm
    embed = M * config.channels * P**2 * D + D + (256 * D + D + D * D + D) + config.label_rows * D
    head = 2 * D * D + 2 * D + D * M * P**2 * O + M * P**2 * O
    assert total == n * layer + embed + head
    with capsys.disabled():
        print(f"\nDiffuSSM-XL, M={M}: {total:,} parameters = 29 x [(13+M)D^2 + 3D^2 + SSM] + rest; paper ~673M")


def test_readings_coincide_when_nothing_is_shortened() -> None:
    batch = inputs(TINY)
    short = awake(replace(TINY, M=1), "diffussm-tiny").eval()
    for resample in ("pool", "linear"):
        full = DiffuSSM(replace(TINY, M=1, stream="full", resample=resample)).eval()
        full.load_state_dict(short.state_dict())
        assert torch.equal(short(*batch), full(*batch))


def test_pooling_gives_every_token_of_a_group_the_same_update() -> None:
    config = replace(TINY, M=4, stream="full", resample="pool")
    block, x, condition = block_and_inputs(config, 64)
    update = (block(x, condition) - x).unflatten(1, (16, 4))
    torch.testing.assert_close(update, update[:, :, :1].expand_as(update))
    assert update.std(1).min() > 0


@pytest.mark.parametrize("stream", ["short", "full"])
def test_one_direction_is_causal_in_raster_order(stream: str) -> None:
    config = replace(TINY, M=1, direction="forward", stream=stream)
    model, (x, t, y) = awake(config, "diffussm-tiny").eval(), inputs(config)
    later = x.clone()
    later[:, :, 4:] += 1
    before, after = model(x, t, y), model(later, t, y)
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])


def test_attention_mixer_is_softmax_attention() -> None:
    config = replace(TINY, mixer="attention", heads=4)
    block, _, _ = block_and_inputs(config, 32)
    u = torch.randn(2, 64, 64).double()
    q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in block.mixer.qkv(u).chunk(3, dim=-1))
    expected = ((q @ k.transpose(-1, -2) / 4.0).softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.mixer(u), expected)


def test_long_skips_pair_blocks_from_either_end() -> None:
    """Block depth-1-i takes [what comes, what block i gave]; the middle block of an odd depth takes nothing."""
    model, batch = awake(replace(TINY, depth=5, skip="long"), "diffussm-tiny").eval(), inputs(TINY)
    received: list[Tensor] = []
    for skip in reversed(model.skips):
        skip.register_forward_pre_hook(lambda _, args: received.append(args[0].detach()))
    with captured(model, *(f"blocks.{index}" for index in range(5))) as seen:
        model(*batch)
    expected = [(2, 1), (3, 0)]  # what comes, and what is taken back, in order of execution
    for joined, (comes, given_back) in zip(received, expected, strict=True):
        assert torch.equal(joined, torch.cat([seen[f"blocks.{comes}"], seen[f"blocks.{given_back}"]], dim=-1))


def test_initialisation() -> None:
    """Each map is a matrix of its own to xavier's bound; embeddings start small."""
    torch.manual_seed(0)
    config = replace(TINY, M=2, width=128, stream="full", resample="linear", classes=100, label_std=0.02)
    model = DiffuSSM(config)
    block, D = model.blocks[0], 128
    for weight in (
        *block.up.weight,
        *block.down.weight,
        *block.shorten.weight,
        *block.lengthen.weight,
        block.w2.weight,
    ):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.98 * bound < weight.abs().max() <= bound
    assert block.down.weight.shape == (2, 2 * D, D)
    assert model.y_embedder is not None
    for weight in (model.y_embedder.embedding_table.weight, model.t_embedder.mlp[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (block.adaLN_modulation[1].weight == 0).all()


@pytest.mark.parametrize("M", [1, 2])
def test_positions_of_a_group_are_the_mean_of_its_patches(M: int) -> None:
    config = replace(TINY, M=M, width=16, size=(2, 4))
    rows = sincos_2d(2, 4, 16).reshape(8 // M, M, 16)
    torch.testing.assert_close(DiffuSSM(config).positions, rows.mean(1))


@pytest.mark.parametrize("field", ["ssm_lr_scale", "init", "discretisation", "state", "join"])
def test_state_space_options_reach_the_layer(field: str) -> None:
    values = {"ssm_lr_scale": 0.25, "init": "real", "discretisation": "bilinear", "state": 6, "join": "sum"}
    mixer = Block(replace(TINY, **{field: values[field]})).mixer
    expected = S4D(64, **{"state": 16, field.replace("ssm_", ""): values[field]})
    assert (mixer.lr_scale, mixer.discretisation, mixer.join) == (
        expected.lr_scale,
        expected.discretisation,
        expected.join,
    )
    assert torch.equal(mixer.A_imag, expected.A_imag)


CHOICES = st.fixed_dictionaries(
    {
        "P": st.sampled_from([1, 2]),
        "M": st.sampled_from([1, 2, 4]),
        "depth": st.integers(1, 4),
        "width": st.sampled_from([16, 32]),
        "heads": st.sampled_from([1, 2]),
        "stream": st.sampled_from(["short", "full"]),
        "resample": st.sampled_from(["pool", "linear"]),
        "direction": st.sampled_from(["both", "forward"]),
        "join": st.sampled_from(["concat", "sum"]),
        "skip": st.sampled_from(["none", "long"]),
        "mixer": st.sampled_from(["s4d", "attention"]),
        "positions": st.sampled_from(["sincos", "none"]),
        "init": st.sampled_from(["lin", "inv", "real"]),
        "discretisation": st.sampled_from(["zoh", "bilinear"]),
        "classes": st.sampled_from([0, 3]),
        "learn_sigma": st.booleans(),
        "size": st.sampled_from([(4, 4), (4, 8)]),
    }
)


@settings(max_examples=30)
@given(CHOICES)
def test_every_combination_builds_runs_and_is_counted(fields: dict[str, object]) -> None:
    config = replace(TINY, state=4, **fields)  # type: ignore[arg-type]
    model, batch = awake(config, "diffussm-tiny").eval(), inputs(config)
    out = model(*batch)
    assert out.shape == (3, config.out_channels, *config.size)
    assert out.isfinite().all()
    macs = config.macs()
    assert macs.matmul + macs.attention == counted_macs("diffussm-tiny", config)


def test_named_sizes_count_to_the_integer() -> None:
    for name, side in (("diffussm-s", 32), ("diffussm-l", 32), ("diffussm-xl", 64), ("patchssm-xl", 64)):
        config = named_config(name, size=(side, side))
        assert config.macs().matmul == counted_macs(name, config)


@pytest.mark.parametrize(
    "fields", [{}, {"stream": "full"}, {"M": 4, "classes": 0, "depth": 2}, {"mixer": "attention", "heads": 4}]
)
def test_elementwise_counts_each_norm_modulation_gate_sum_and_activation_once(fields: dict[str, object]) -> None:
    """Read off a traced call, mixers apart; a modulation is a product and a sum."""
    config = replace(TINY, **fields)  # type: ignore[arg-type]
    L, D = config.tokens(), config.width
    rows, J = L // config.group(), L // config.M
    with torch.device("meta"):
        mixer, u = Block(config).mixer.eval(), torch.empty(1, L, D)
    traced = traced_elements(DiffuSSM, config)
    traced.subtract({kind: config.depth * count for kind, count in traced_call(mixer, u).items()})
    products = traced["product"] - (config.depth + 1) * rows * D - TIME_FREQUENCIES // 2
    assert products == config.depth * (rows * D + 2 * J * D)  # gates, fusion
    seen = traced["norm"] + traced["activation"] + traced["sum"] + products
    assert config.macs().elementwise - config.depth * config.mixer_macs(L).elementwise == seen


@pytest.mark.parametrize("stream", ["short", "full"])
def test_an_empty_batch_gives_an_empty_batch(stream: str) -> None:
    config = replace(TINY, stream=stream)
    x, t, y = (part[:0] for part in inputs(config) if part is not None)
    assert build("diffussm-tiny", stream=stream)(x, t, y).shape == (0, 1, 8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"P": 3}, r"size=\(8, 8\) .* divisible by P=3"),
        ({"P": 0}, "P=0"),
        ({"M": 3}, r"M=3 .* divisor of the 64 tokens"),
        ({"width": 66}, "width=66 .* multiple of 4"),
        ({"depth": 0}, "depth=0"),
        ({"stream": "shrot"}, "stream='shrot' .*did you mean 'short'"),
        ({"mixer": "attention", "heads": 5}, "heads=5 .* divisor of 64"),
        ({"state": 15}, "state=15 .* even"),
        ({"size": (8, 9), "P": 2}, r"size=\(8, 9\) .* divisible by P=2"),
        ({"latent_factor": 0}, "latent_factor=0 .* positive"),
        ({"depth": 2.5}, "depth=2.5 .* an integer"),
        ({"M": True}, "M=True .* an integer"),
        ({"size": (8.0, 8)}, r"size=\(8.0, 8\) .* two positive integers"),
        ({"size": "88"}, r"size=\('8', '8'\) .* two positive integers"),
        ({"class_dropout": 1.0}, "class_dropout=1.0"),
        ({"M": 64, "width": 16, "stream": "full", "resample": "linear"}, "M=64"),
    ],
)
def test_impossible_configs_are_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)  # type: ignore[arg-type]


def test_cost_of_an_impossible_size_is_refused() -> None:
    for ask in (TINY.tokens, TINY.macs):
        with pytest.raises(ValueError, match=r"^M=2 .* divisor of the 9 tokens"):
            ask((3, 3))
        with pytest.raises(ValueError, match=r"^size=\(8, 9\) .*P=2"):
            replace(TINY, P=2).macs((8, 9))


def test_patchified_baseline_shortens_by_patches_only() -> None:
    config = named_config("patchssm-tiny")
    assert (config.P, config.M, config.tokens()) == (2, 1, 16)
    assert build("patchssm-tiny").config == config
    with pytest.raises(ValueError, match="M, P"):
        PatchSSMConfig(M=2)
