"""DiT: a transformer on patches of the image, modulated by time and label (Peebles & Xie, arXiv:2212.09748).

Module names are those of the official code, so its checkpoints load as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from models.denoiser import Denoiser, DenoiserConfig, register, require
from models.layers.embeddings import LabelEmbedder, TimestepEmbedder, sincos_2d
from models.layers.modulation import FinalLayer, gated_sum, norm_modulate
from models.layers.patches import PatchEmbed, patch_grid, unpatchify, xavier_as_linear_
from models.macs import Macs, attention, linear

TIME_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class DiTConfig(DenoiserConfig):
    P: int = 2  # patch size
    depth: int = 12
    width: int = 384
    heads: int = 6
    mlp_ratio: float = 4.0

    @property
    def hidden(self) -> int:
        return int(self.width * self.mlp_ratio)

    def check(self) -> None:
        require(self.P > 0, "P", self.P, "a positive integer")
        self.grid()
        require(self.depth > 0, "depth", self.depth, "a positive integer")
        positive_fourth = self.width > 0 and self.width % 4 == 0
        require(positive_fourth, "width", self.width, "a positive multiple of 4 (2-D sinusoidal positions)")
        divides = self.heads > 0 and self.width % self.heads == 0
        require(divides, "heads", self.heads, f"a divisor of width={self.width}")
        whole = 1 <= self.width * self.mlp_ratio < math.inf
        require(whole, "mlp_ratio", self.mlp_ratio, f"at least 1/width = 1/{self.width}, and a width that is finite")

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(size or self.size, self.P)

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        rows, columns = self.grid(size)
        return rows * columns

    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        L, D, cell = self.tokens(size), self.width, self.P * self.P
        embed = linear(L, cell * self.channels, D) + linear(1, TIME_FREQUENCIES, D) + linear(1, D, D)
        embed += Macs(elementwise=L * D + D + D * (self.classes > 0))  # + positions; SiLU in the time MLP; + label
        final = linear(1, D, 2 * D) + linear(L, D, cell * self.out_channels) + Macs(elementwise=D + 2 * L * D)
        return embed + self.depth * self._block_macs(L) + final

    def _block_macs(self, L: int) -> Macs:
        D = self.width
        mix = linear(L, D, 3 * D) + attention(L, L, D) + linear(L, D, D)
        mlp = linear(L, D, self.hidden) + linear(L, self.hidden, D)
        # Twice (norm, modulate, gate, residual sum) over L x D; GELU over L x hidden; SiLU of the condition.
        return linear(1, D, 6 * D) + mix + mlp + Macs(elementwise=8 * L * D + L * self.hidden + D)


class Attention(nn.Module):
    """Multi-head self-attention, (B, L, D) -> (B, L, D); the rows of `qkv` are [q; k; v], each (heads, D/heads)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, L, 3, heads, D/heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D/heads)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """adaLN-Zero: the condition shifts, scales and gates both residual branches; gates start at zero."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=1)
        x = gated_sum(x, gate1, self.attn(norm_modulate(x, self.norm1, shift1, scale1)))
        return gated_sum(x, gate2, self.mlp(norm_modulate(x, self.norm2, shift2, scale2)))


def _named(letter: str, depth: int, width: int, heads: int) -> dict[str, DiTConfig]:
    """The three patch sizes of one published width, on the 32 x 32 latents of 256-pixel images."""
    return {f"{letter}/{P}": DiTConfig(P=P, depth=depth, width=width, heads=heads) for P in (8, 4, 2)}


SIZES: dict[str, DiTConfig] = {
    **_named("s", 12, 384, 6),
    **_named("b", 12, 768, 12),
    **_named("l", 24, 1024, 16),
    **_named("xl", 28, 1152, 16),
    "tiny": DiTConfig(
        size=(8, 8),
        channels=1,
        classes=10,
        learn_sigma=False,
        latent_factor=1,
        label_std=1.0,
        P=2,
        depth=3,
        width=64,
        heads=4,
    ),
}


@register("dit", sizes=SIZES)
class DiT(Denoiser):
    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        D, cell = config.width, config.P * config.P
        self.x_embedder = PatchEmbed(config.channels, config.P, D)
        self.t_embedder = TimestepEmbedder(D, TIME_FREQUENCIES)
        if config.classes:
            self.y_embedder = LabelEmbedder(config.label_rows, D)
        # A frozen parameter rather than a buffer: published parameter counts include it.
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens(), D), requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(D, config.heads, config.hidden) for _ in range(config.depth))
        self.final_layer = FinalLayer(D, cell * config.out_channels)
        self.initialise()

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        x = self.x_embedder(x) + self.pos_embed  # (B, L, D)
        condition = self.t_embedder(t)  # (B, D)
        if y is not None:
            condition = condition + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, condition)
        patches = self.final_layer(x, condition)  # (B, L, P*P*out_channels)
        return unpatchify(patches, self.config.grid(), self.config.P, self.config.out_channels)

    @torch.no_grad()
    def initialise(self) -> None:
        """Blocks start as the identity and the output as zero; the time's embedding at the scale of 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        xavier_as_linear_(self.x_embedder.proj)
        self.pos_embed.copy_(sincos_2d(*self.config.grid(), self.config.width))
        for weight in (p for p in self.t_embedder.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=0.02)
        if self.config.classes:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=self.config.label_std)
        for name, parameter in self.blocks.named_parameters():
            if "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
        self.final_layer.zero_()
