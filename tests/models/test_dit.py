"""DiT equals the official code, its published sizes and the tracer's counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models import build, named_config
from models.dit import SIZES, TIME_FREQUENCIES, DiT, DiTConfig
from tests.models.conformance import counted_macs
from tests.models.tracing import traced_elements
from tests.parity_arrays import ParityArrays, assert_forward, assert_matches_reference, captured, load_parity

# Frozen positions included, and trainable only; 1000 classes and the null class, 32 x 32 x 4.
PARAMETERS = {
    "s/8": (33_148_160, 33_142_016),
    "s/4": (32_945_024, 32_920_448),
    "s/2": (32_963_360, 32_865_056),
    "b/8": (130_881_536, 130_869_248),
    "b/4": (130_475_648, 130_426_496),
    "b/2": (130_512_416, 130_315_808),
    "l/8": (458_594_816, 458_578_432),
    "l/4": (458_053_760, 457_988_224),
    "l/2": (458_102_816, 457_840_672),
    "xl/8": (675_683_072, 675_664_640),
    "xl/4": (675_074_432, 675_000_704),
    "xl/2": (675_129_632, 674_834_720),
}

# GMACs: linear + convolution, attention.
GMACS = {
    "s/8": (0.3556, 0.0024),
    "s/4": (1.3748, 0.0377),
    "s/2": (5.4517, 0.6040),
    "b/8": (1.4128, 0.0047),
    "b/4": (5.4897, 0.0755),
    "b/2": (21.7971, 1.2080),
    "l/8": (4.9988, 0.0126),
    "l/4": (19.4943, 0.2013),
    "l/2": (77.4764, 3.2212),
    "xl/8": (7.3759, 0.0165),
    "xl/4": (28.7794, 0.2642),
    "xl/2": (114.3936, 4.2279),
}

TINY = SIZES["tiny"]


def reference_dit(parity: ParityArrays) -> DiT:
    cfg = parity.cfg
    config = DiTConfig(
        size=cfg["input_size"],
        channels=cfg["in_channels"],
        classes=cfg["num_classes"],
        P=cfg["patch_size"],
        depth=cfg["depth"],
        width=cfg["hidden_size"],
        heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
    )
    model = DiT(config)
    torch.testing.assert_close(model.pos_embed.data, parity.params["pos_embed"], rtol=0, atol=1e-6)
    model.load_reference_state_dict(parity.params)
    return model.eval()


@pytest.mark.parametrize("name", ["dit_p2", "dit_p4"])
def test_equals_the_official_code(name: str) -> None:
    parity = load_parity(name)
    assert_matches_reference(reference_dit(parity), parity)


@pytest.mark.parametrize("name", ["dit_p2", "dit_p4"])
def test_intermediate_arrays_equal_the_official_code(name: str) -> None:
    parity = load_parity(name)
    model = reference_dit(parity)
    places = {
        "x_embedder": "patch_embed",
        "t_embedder": "t_emb",
        "blocks.0": "block0",
        f"blocks.{model.config.depth - 1}": "block_last",
    }
    with captured(model, *places) as seen, torch.no_grad():
        model(**parity.inputs)
    for ours, theirs in places.items():
        assert_forward(seen[ours], parity.tensor(f"mid/{theirs}"), theirs)


def test_loads_a_wrapped_checkpoint_and_refuses_another_size() -> None:
    parity = load_parity("dit_p4")
    model = reference_dit(parity)
    model.load_reference_state_dict({f"module.{key}": value for key, value in parity.params.items()})
    with pytest.raises(ValueError, match=r"missing blocks\.2\..*unexpected nothing"):
        DiT(replace(model.config, depth=3)).load_reference_state_dict(parity.params)
    with pytest.raises(ValueError, match=r"^pos_embed=\(1, 16, 32\) is not valid: must be shape \(1, 4, 32\)"):
        DiT(replace(model.config, size=(8, 8))).load_reference_state_dict(parity.params)


def test_initialisation_is_the_official_one() -> None:
    """Xavier on every matrix, the patch convolution as the matrix it is; small embeddings; shut gates."""
    torch.manual_seed(0)
    model = DiT(replace(TINY, width=128, P=4, channels=4, classes=100, label_std=0.02))
    block = model.blocks[0]
    for weight in (model.x_embedder.proj.weight.flatten(1), block.attn.qkv.weight, block.mlp.fc1.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.98 * bound < weight.abs().max() <= bound
    for weight in (
        model.y_embedder.embedding_table.weight,
        model.t_embedder.mlp[0].weight,
        model.t_embedder.mlp[2].weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (block.adaLN_modulation[1].weight == 0).all()


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameter_counts_are_the_published_ones(size: str) -> None:
    with torch.device("meta"):
        model = build(f"dit-{size}")
    assert (count(model), count(model, trainable=True)) == PARAMETERS[size]


def test_parameters_at_twice_the_resolution() -> None:
    with torch.device("meta"):
        model = build("dit-xl/2", size=64)
    assert (count(model), count(model, trainable=True)) == (676_014_368, 674_834_720)


def count(model: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("size", GMACS)
def test_macs_are_the_published_ones(size: str) -> None:
    macs = named_config(f"dit-{size}").macs()
    assert (round(macs.matmul / 1e9, 4), round(macs.attention / 1e9, 4)) == GMACS[size]


def test_macs_of_the_largest_to_the_last_digit() -> None:
    assert named_config("dit-xl/2").macs().total == 118_621_421_568
    assert round(named_config("dit-xl/2").macs((64, 64)).total / 1e9, 4) == 524.5383


@pytest.mark.parametrize("size", SIZES)
def test_macs_equal_the_tracer(size: str) -> None:
    config = SIZES[size]
    larger = config if size == "tiny" else replace(config, size=(64, 64))
    for each in {config, larger}:
        macs = each.macs()
        assert macs.matmul + macs.attention == counted_macs(f"dit-{size}", each)
        assert macs == config.macs(each.size)


@pytest.mark.parametrize("shape", [(8, 12), (4, 16)])
def test_rectangular_images(shape: tuple[int, int]) -> None:
    config = replace(TINY, size=shape)
    model = DiT(config)
    torch.nn.init.normal_(model.final_layer.linear.weight)
    x = torch.randn(2, 1, *shape)
    out = model(x, torch.tensor([3, 700]), torch.tensor([0, 10]))
    assert out.shape == x.shape
    assert config.tokens() == shape[0] * shape[1] // 4
    assert config.macs().matmul + config.macs().attention == counted_macs("dit-tiny", config)
    top, bottom = out[:, :, :2], out[:, :, -2:]
    assert not torch.allclose(top, bottom)


def test_unconditional_has_no_label_table() -> None:
    model = build("dit-tiny", classes=0)
    assert not any(key.startswith("y_embedder") for key in model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert model(x, torch.tensor([3, 700])).shape == x.shape


@pytest.mark.parametrize("config", [TINY, replace(TINY, classes=0, P=4, size=(8, 16), depth=2)], ids=["tiny", "other"])
def test_elementwise_counts_each_norm_modulation_gate_sum_and_activation_once(config: DiTConfig) -> None:
    """A modulation is a product and a sum: of the products only the gates are left to count."""
    traced = traced_elements(DiT, config)
    modulations = (2 * config.depth + 1) * config.tokens() * config.width
    gates = traced["product"] - modulations - TIME_FREQUENCIES // 2
    assert gates == 2 * config.depth * config.tokens() * config.width
    assert config.macs().elementwise == traced["norm"] + traced["activation"] + traced["sum"] + gates


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("P", 3, r"size=\(8, 8\) is not valid: must be divisible by P=3"),
        ("P", 0, "P=0 is not valid: must be a positive integer"),
        ("size", (8, 9), r"size=\(8, 9\) is not valid: must be divisible by P=2"),
        ("heads", 5, "heads=5 is not valid: must be a divisor of width=64"),
        ("heads", 0, "heads=0 is not valid"),
        ("width", 66, "width=66 is not valid: must be a positive multiple of 4"),
        ("width", 0, "width=0 is not valid"),
        ("depth", 0, "depth=0 is not valid: must be a positive integer"),
        ("mlp_ratio", 0.0, "mlp_ratio=0.0 is not valid"),
        ("mlp_ratio", 1e308, r"mlp_ratio=1e\+308 is not valid"),
    ],
)
def test_refuses(field: str, value: object, valid: str) -> None:
    with pytest.raises(ValueError, match=f"^{valid}") as refusal:
        replace(TINY, **{field: value})
    assert "\n" not in str(refusal.value)


def test_cost_of_an_impossible_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size=\(9, 8\) is not valid"):
        TINY.macs((9, 8))
