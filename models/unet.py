"""U-Nets: ADM (Dhariwal & Nichol, arXiv:2105.05233) and latent diffusion's (Rombach et al., arXiv:2112.10752).

Module names are those of the two official codes, so their checkpoints load as they are. A config
is first laid out as stages of layers, from which both the network and its cost are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, cat, nn

from models.denoiser import Denoiser, DenoiserConfig, register, require, require_choice
from models.layers.devices import prefers_channels_last
from models.layers.embeddings import timestep_embedding
from models.layers.unet_blocks import (
    AttentionBlock,
    Downsample,
    ResBlock,
    SpatialTransformer,
    Upsample,
    conv3x3,
    zeroed,
)
from models.macs import Macs, attention, conv2d, linear


@dataclass(frozen=True, kw_only=True)
class UNetConfig(DenoiserConfig):
    label_std: float = 1.0  # ADM's
    width: int = 128  # channels at multiplier 1
    channel_mult: tuple[float, ...] = (1, 2, 2)  # one per level; each level halves the sides
    res_blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention_factors: tuple[int, ...] = (2, 4)  # downsample factors with attention; the bottom always has it
    attention: str = "self"  # self: one attention (ADM); transformer: + cross-attention to the label, + MLP (LDM)
    attention_order: str = "legacy"  # how `self` packs its weights: legacy (heads, qkv), new (qkv, heads)
    heads: int | None = None  # the same number at every level; or else
    head_width: int | None = 32  # channels per head
    resample: str = "resblock"  # between levels: inside a residual block, or by a convolution (conv)
    modulation: str = "scale_shift"  # how time and label enter a residual block: scale_shift or add
    context_width: int = 512  # of the label's token under attention=transformer
    norm_groups: int = 32  # with one channel per group, a bias before a norm does nothing
    dropout: float = 0.0  # before the last convolution of every residual block

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_factors", tuple(self.attention_factors))
        super().__post_init__()

    def check(self) -> None:
        require_choice("attention", self.attention, ("self", "transformer"))
        require_choice("attention_order", self.attention_order, ("legacy", "new"))
        require_choice("resample", self.resample, ("resblock", "conv"))
        require_choice("modulation", self.modulation, ("scale_shift", "add"))
        for field in ("width", "res_blocks", "context_width", "norm_groups"):
            require(getattr(self, field) > 0, field, getattr(self, field), "a positive integer")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        grouped = [mult > 0 and self.width * mult % self.norm_groups == 0 for mult in self.channel_mult]
        valid = f"multipliers that make width={self.width} a multiple of norm_groups={self.norm_groups}"
        require(bool(grouped) and all(grouped), "channel_mult", self.channel_mult, valid)
        self._check_factors()
        self._check_heads()
        self._area(self.size)

    def idle(self) -> set[str]:
        idle = super().idle()
        if self.attention == "self" or not self.classes:
            idle.add("context_width")
        if self.attention == "transformer" or all(self.heads_at(width) == 1 for width in self.attended_widths):
            idle.add("attention_order")
        return idle

    def _check_factors(self) -> None:
        known = [2**level for level in range(len(self.channel_mult))]
        valid = f"distinct downsample factors among {known} (one per channel_mult)"
        factors = self.attention_factors
        require(set(factors) <= set(known) and len(set(factors)) == len(factors), "attention_factors", factors, valid)

    def _check_heads(self) -> None:
        given = (self.heads is None) + (self.head_width is None)
        require(given == 1, "heads", self.heads, f"None exactly when head_width={self.head_width!r} is given")
        field = "head_width" if self.heads is None else "heads"
        value = getattr(self, field)
        divides = value > 0 and all(width % value == 0 for width in self.attended_widths)
        require(divides, field, value, f"a divisor of the attended widths {self.attended_widths}")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [int(self.width * mult) for mult in self.channel_mult]

    @property
    def attended_widths(self) -> list[int]:
        """Distinct channel counts at which there is attention, fewest first."""
        return sorted({*(self.widths[factor.bit_length() - 1] for factor in self.attention_factors), self.widths[-1]})

    def heads_at(self, width: int) -> int:
        return self.heads or width // (self.head_width or width)

    def _area(self, size: tuple[int, int]) -> int:
        step = 2 ** (len(self.channel_mult) - 1)
        divides = size[0] % step == 0 and size[1] % step == 0
        require(divides, "size", size, f"divisible by {step}, halved once between {len(self.channel_mult)} levels")
        return size[0] * size[1]

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        """Positions at the finest level."""
        return self._area(size or self.size)

    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        area, first, emb = self.tokens(size), self.widths[0], 4 * self.width
        adds_label = self.classes > 0 and self.attention == "self"
        total = linear(1, self.width, emb) + linear(1, emb, emb) + Macs(elementwise=emb * (1 + adds_label))
        for layer in layout(self).layers():
            total += _layer_macs(layer, self, area)
        # A 3 x 3 convolution of `area` positions costs the same whatever the aspect.
        return total + conv2d(1, area, first, self.out_channels) + Macs(elementwise=2 * area * first)


Kind = Literal["stem", "res", "attention", "down", "up"]


@dataclass(frozen=True)
class Layer:
    """One layer of the U, whose output is `factor` times smaller than x along a side."""

    kind: Kind
    inputs: int
    outputs: int
    factor: int


@dataclass(frozen=True)
class Layout:
    """Stages of layers; the output of every stage of `descent` is concatenated to the input of one of `ascent`."""

    descent: list[list[Layer]]
    bottom: list[Layer]
    ascent: list[list[Layer]]

    def layers(self) -> list[Layer]:
        return [layer for stage in (*self.descent, self.bottom, *self.ascent) for layer in stage]


def layout(config: UNetConfig) -> Layout:
    widths, factor = config.widths, 1
    width, last = widths[0], len(widths) - 1

    def stage(inputs: int, outputs: int) -> list[Layer]:
        layers = [Layer("res", inputs, outputs, factor)]
        if factor in config.attention_factors:
            layers.append(Layer("attention", outputs, outputs, factor))
        return layers

    descent = [[Layer("stem", config.channels, width, 1)]]
    for level, outputs in enumerate(widths):
        for _ in range(config.res_blocks):
            descent.append(stage(width, outputs))
            width = outputs
        if level < last:
            factor *= 2
            descent.append([Layer("down", width, width, factor)])

    res = Layer("res", width, width, factor)
    bottom = [res, Layer("attention", width, width, factor), res]

    skips, ascent = [stage[-1].outputs for stage in descent], []
    for level in range(last, -1, -1):
        for _ in range(config.res_blocks + 1):
            ascent.append(stage(width + skips.pop(), widths[level]))
            width = widths[level]
        if level > 0:
            factor //= 2
            ascent[-1].append(Layer("up", width, width, factor))
    return Layout(descent, bottom, ascent)


def _layer_macs(layer: Layer, config: UNetConfig, area: int) -> Macs:
    n, inputs, outputs = area // layer.factor**2, layer.inputs, layer.outputs  # n: positions of the output
    if layer.kind == "attention":
        return (
            _transformer_macs(outputs, n, config) if config.attention == "transformer" else _attention_macs(outputs, n)
        )
    if layer.kind == "stem" or (layer.kind in ("down", "up") and config.resample == "conv"):
        return conv2d(1, n, inputs, outputs)
    return _res_macs(layer, config, n)


def _res_macs(layer: Layer, config: UNetConfig, n: int) -> Macs:
    inputs, outputs = layer.inputs, layer.outputs
    n_in = {"down": 4 * n, "up": n // 4}.get(layer.kind, n)
    emb = 4 * config.width
    macs = conv2d(1, n, inputs, outputs) + conv2d(1, n, outputs, outputs)
    macs += linear(1, emb, 2 * outputs if config.modulation == "scale_shift" else outputs)
    if inputs != outputs:
        macs += conv2d(1, n, inputs, outputs, kernel=1)
    # (norm, SiLU) in; SiLU of the embedding; (norm, SiLU, modulation, residual sum) out.
    return macs + Macs(elementwise=2 * n_in * inputs + emb + 4 * n * outputs)


def _attention_macs(width: int, n: int) -> Macs:
    mix = linear(n, width, 3 * width) + attention(n, n, width) + linear(n, width, width)
    return mix + Macs(elementwise=2 * n * width)  # norm, residual sum


def _transformer_macs(width: int, n: int, config: UNetConfig) -> Macs:
    keys, context = (1, config.context_width) if config.classes else (n, width)
    project = 2 * linear(n, width, width)
    mix = 4 * linear(n, width, width) + attention(n, n, width)
    cross = 2 * linear(n, width, width) + 2 * linear(keys, context, width) + attention(n, keys, width)
    mlp = linear(n, width, 8 * width) + linear(n, 4 * width, width)
    # Four norms, four residual sums, GELU and gate of the 4x hidden layer.
    return project + mix + cross + mlp + Macs(elementwise=16 * n * width)


class Stage(nn.ModuleList):
    """Layers between two concatenations; each takes what it needs of the condition."""

    def __init__(self, layers: list[Layer], config: UNetConfig) -> None:
        super().__init__(make_layer(layer, config) for layer in layers)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


def make_layer(layer: Layer, config: UNetConfig) -> nn.Module:
    match layer.kind:
        case "stem":
            return conv3x3(layer.inputs, layer.outputs)
        case "attention":
            return make_attention(layer.outputs, config)
        case "down" if config.resample == "conv":
            return Downsample(layer.outputs)
        case "up" if config.resample == "conv":
            return Upsample(layer.outputs)
    scale_shift, resample = config.modulation == "scale_shift", "none" if layer.kind == "res" else layer.kind
    emb_width, groups = 4 * config.width, config.norm_groups
    return ResBlock(layer.inputs, layer.outputs, emb_width, groups, resample, scale_shift, config.dropout)


def label_embedding(config: UNetConfig, width: int) -> nn.Embedding:
    """(B,) labels -> (B, width), the null class last."""
    embedding = nn.Embedding(config.label_rows, width)
    nn.init.normal_(embedding.weight, std=config.label_std)
    return embedding


def make_attention(width: int, config: UNetConfig) -> nn.Module:
    heads, groups = config.heads_at(width), config.norm_groups
    if config.attention == "transformer":
        return SpatialTransformer(width, heads, config.context_width if config.classes else width, groups)
    return AttentionBlock(width, heads, config.attention_order, groups)


ADM = UNetConfig(size=(256, 256), channels=3, latent_factor=1, class_dropout=0.0, width=256, head_width=64)
LDM = UNetConfig(learn_sigma=False, attention="transformer", resample="conv", modulation="add", width=256)
TOY = UNetConfig(size=(8, 8), channels=1, classes=10, learn_sigma=False, latent_factor=1, norm_groups=8)

SIZES: dict[str, UNetConfig] = {
    "adm-64": replace(
        ADM,
        size=(64, 64),
        width=192,
        channel_mult=(1, 2, 3, 4),
        res_blocks=3,
        attention_factors=(2, 4, 8),
        attention_order="new",
        dropout=0.1,
    ),
    "adm-128": replace(
        ADM, size=(128, 128), channel_mult=(1, 1, 2, 3, 4), attention_factors=(4, 8, 16), heads=4, head_width=None
    ),
    "adm-256": replace(ADM, channel_mult=(1, 1, 2, 2, 4, 4), attention_factors=(8, 16, 32)),
    "adm-512": replace(ADM, size=(512, 512), channel_mult=(0.5, 1, 1, 2, 2, 4, 4), attention_factors=(16, 32, 64)),
    "ldm-4": replace(
        LDM,
        size=(64, 64),
        channels=3,
        latent_factor=4,
        width=192,
        channel_mult=(1, 2, 3, 5),
        attention_factors=(2, 4, 8),
        heads=1,
        head_width=None,
    ),
    "ldm-8": replace(LDM, channel_mult=(1, 2, 4), attention_factors=(1, 2, 4)),
    "tiny": replace(TOY, width=32, channel_mult=(1, 2), res_blocks=1, attention_factors=(2,), head_width=16),
    "small": replace(TOY, size=(32, 32), channels=3, width=64, channel_mult=(1, 2, 2), attention_factors=(2, 4)),
}


@register("unet", sizes=SIZES)
class UNet(Denoiser):
    """Under attention=transformer the label is a token from `label_context`, which published counts leave out."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        emb, plan, first = 4 * config.width, layout(config), config.widths[0]
        self.time_embed = nn.Sequential(nn.Linear(config.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if config.classes and config.attention == "self":
            self.label_emb = label_embedding(config, emb)
        self.input_blocks = nn.ModuleList(Stage(layers, config) for layers in plan.descent)
        self.middle_block = Stage(plan.bottom, config)
        self.output_blocks = nn.ModuleList(Stage(layers, config) for layers in plan.ascent)
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, first), nn.SiLU(), zeroed(conv3x3(first, config.out_channels))
        )
        if config.classes and config.attention == "transformer":
            self.label_context = label_embedding(config, config.context_width)

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        emb, context = self._condition(timestep_embedding(t, self.config.width).to(x.dtype), y)
        if prefers_channels_last(x):  # every layer keeps it; weights stay as optimisers and checkpoints know them
            x = x.to(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, emb, context)
            skips.append(x)
        x = self.middle_block(x, emb, context)
        for stage in self.output_blocks:
            x = stage(cat([x, skips.pop()], dim=1), emb, context)
        return self.out(x).contiguous()

    def _condition(self, time: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """For the residual blocks (B, 4 width); for the transformers (B, 1, context width)."""
        emb = self.time_embed(time)
        if y is None:
            return emb, None
        if self.config.attention == "self":
            return emb + self.label_emb(y), None
        return emb, self.label_context(y)[:, None]

    def load_reference_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Latent-diffusion files keep the class embedder beside the U-Net, not in it."""
        beside, inside = "cond_stage_model.embedding.", "model.diffusion_model.label_context."
        super().load_reference_state_dict({key.replace(beside, inside): value for key, value in state.items()})
