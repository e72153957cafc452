"""DiffuSSM (arXiv 2311.18257): a gated bidirectional state-space block inside an hourglass, no attention.

No official code exists. Shapes follow the paper's cost formula, 13 (L/M) D^2 + L D^2 per layer plus
the sequence mixer, which fixes every matrix below. The text leaves one thing open, where the stream
of residuals lives; `stream` and `resample` switch between the readings (docs/architecture.md):

- `stream="short"`: at length J = L/M. The block equations hold literally and the cost is exact.
- `stream="full", resample="pool"`: at length L, resampled without parameters, as Figure 2 draws it.
- `stream="full", resample="linear"`: at length L, resampled by learned maps, one per offset.

At M = 1 the three coincide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import macs as cost
from models.denoiser import Denoiser, DenoiserConfig, register, require, require_choice
from models.layers.embeddings import LabelEmbedder, TimestepEmbedder, sincos_2d
from models.layers.modulation import FinalLayer, gated_sum, norm_modulate
from models.layers.patches import patch_grid, patchify, unpatchify
from models.macs import Macs
from models.ssm.s4d import S4D, s4d_macs

TIME_FREQUENCIES = 256


@dataclass(frozen=True, kw_only=True)
class DiffuSSMConfig(DenoiserConfig):
    P: int = 1  # patch size
    M: int = 2  # hourglass ratio: dense layers run at length J = L / M
    depth: int = 29
    width: int = 1152  # D
    stream: str = "short"  # short | full
    resample: str = "pool"  # pool | linear; used by stream="full"
    direction: str = "both"  # both | forward
    join: str = "concat"  # concat | sum: how the two directions meet (the paper's Y is L x 2D)
    skip: str = "none"  # none | long: U-style skips from the first half of the depth to the second
    mixer: str = "s4d"  # s4d | attention: the counterfactual of the paper's FLOP figure
    heads: int = 16  # used by mixer="attention"
    positions: str = "sincos"  # sincos | none
    state: int = 64  # N, real state size of one S4D channel
    init: str = "lin"  # lin | inv | real: initial A
    discretisation: str = "zoh"  # zoh | bilinear
    ssm_lr_scale: float = 1.0  # learning rate of dt and A, relative to the rest

    def check(self) -> None:
        require(self.P > 0, "P", self.P, "a positive integer")
        require(self.M > 0, "M", self.M, "a positive integer")
        self.tokens()
        require(self.depth > 0, "depth", self.depth, "a positive integer")
        require(self.width > 0 and self.width % 4 == 0, "width", self.width, "a positive multiple of 4")
        require(2 * self.width % self.M == 0, "M", self.M, f"a divisor of 2 x width = {2 * self.width}")
        require_choice("stream", self.stream, ("short", "full"))
        require_choice("resample", self.resample, ("pool", "linear"))
        require_choice("direction", self.direction, ("both", "forward"))
        require_choice("join", self.join, ("concat", "sum"))
        require_choice("skip", self.skip, ("none", "long"))
        require_choice("mixer", self.mixer, ("s4d", "attention"))
        require_choice("positions", self.positions, ("sincos", "none"))
        require_choice("init", self.init, ("lin", "inv", "real"))
        require_choice("discretisation", self.discretisation, ("zoh", "bilinear"))
        require(self.state > 0 and self.state % 2 == 0, "state", self.state, "a positive even integer")
        require(self.ssm_lr_scale > 0, "ssm_lr_scale", self.ssm_lr_scale, "positive")
        if self.learned_resampling:
            require(self.width % self.M == 0, "M", self.M, f"a divisor of width={self.width} (resample='linear')")
        if self.mixer == "attention":
            require(self.heads > 0 and self.width % self.heads == 0, "heads", self.heads, f"a divisor of {self.width}")

    def idle(self) -> set[str]:
        of_s4d = {"direction", "join", "state", "init", "discretisation", "ssm_lr_scale"}
        idle = super().idle() | (of_s4d if self.mixer == "attention" else {"heads"})
        if self.direction == "forward":
            idle.add("join")
        if self.stream == "short" or self.M == 1:
            idle.add("resample")
        if self.M == 1:
            idle.add("stream")
        if self.depth == 1:
            idle.add("skip")
        return idle

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(size or self.size, self.P)

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        rows, columns = self.grid(size)
        tokens = rows * columns
        require(tokens % self.M == 0, "M", self.M, f"a divisor of the {tokens} tokens (P={self.P})")
        return tokens

    @property
    def learned_resampling(self) -> bool:
        return self.stream == "full" and self.resample == "linear" and self.M > 1

    @property
    def mixed_width(self) -> int:
        """Channels of the mixer's output Y: both directions side by side, or one sequence."""
        concat = self.mixer == "s4d" and self.direction == "both" and self.join == "concat"
        return 2 * self.width if concat else self.width

    def group(self) -> int:
        """Patches embedded into one residual vector."""
        return self.M if self.stream == "short" else 1

    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        L, D, group = self.tokens(size), self.width, self.group()
        rows = L // group
        condition = cost.linear(1, TIME_FREQUENCIES, D) + cost.linear(1, D, D)
        embed = cost.linear(rows, group * self.channels * self.P**2, D)
        head = cost.linear(1, D, 2 * D) + cost.linear(rows, D, group * self.out_channels * self.P**2)
        skips = (self.depth // 2 if self.skip == "long" else 0) * cost.linear(rows, 2 * D, D)
        # Position sum, final norm and modulation; SiLU of the time MLP and of the final layer, label sum.
        edges = Macs(elementwise=3 * rows * D + (3 if self.classes else 2) * D)
        return condition + embed + head + skips + edges + self.depth * self.block_macs(L)

    def block_macs(self, L: int) -> Macs:
        J, D, Y = L // self.M, self.width, self.mixed_width
        dense = cost.linear(J, D, D) + cost.linear(J, D, self.M * D)  # W0, Wup
        fusion = cost.linear(J, Y, 2 * D) + cost.linear(J, 2 * D, 2 * D)  # Wdown (M maps to 2D/M), W2
        fusion += cost.linear(J, D, 2 * D) + cost.linear(J, 2 * D, D)  # W1, W3
        if self.learned_resampling:
            dense += cost.linear(L, D, D // self.M) + cost.linear(J, D, self.M * D)
        rows = L // self.group()
        # Norm, modulation, gate, residual sum; s(.) of W0, Wdown, W2, W1 and their product; s(Wup); SiLU.
        pointwise = Macs(elementwise=4 * rows * D + 9 * J * D + L * D + D)
        return cost.linear(1, D, 3 * D) + dense + self.mixer_macs(L) + fusion + pointwise

    def mixer_macs(self, L: int) -> Macs:
        if self.mixer == "attention":
            return cost.linear(L, self.width, 3 * self.width) + cost.attention(L, L, self.width)
        return s4d_macs(L, self.width, self.state, self.direction, self.join)


class OffsetMaps(nn.Module):
    """A separate linear map for each of `ratio` offsets."""

    def __init__(self, ratio: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(ratio, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(ratio, outputs))
        xavier_each_(self.weight)


class UpScale(OffsetMaps):
    """One vector to M: (B, J, inputs) -> (B, J*M, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        ratio, inputs, outputs = self.weight.shape
        flat = F.linear(x, self.weight.transpose(1, 2).reshape(ratio * outputs, inputs), self.bias.flatten())
        return flat.reshape(x.shape[0], x.shape[1] * ratio, outputs)


class DownScale(OffsetMaps):
    """M vectors to one: (B, J*M, inputs) -> (B, J, M*outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        ratio, inputs, outputs = self.weight.shape
        offsets = x.reshape(-1, ratio, inputs).transpose(0, 1)  # (M, B*J, inputs)
        mapped = torch.baddbmm(self.bias[:, None], offsets, self.weight)  # (M, B*J, outputs)
        return mapped.transpose(0, 1).reshape(x.shape[0], x.shape[1] // ratio, ratio * outputs)


class MeanPool(nn.Module):
    """(B, J*M, D) -> (B, J, D)."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.ratio)).mean(2)


class Repeat(nn.Module):
    """(B, J, D) -> (B, J*M, D)."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.ratio, dim=1)


def xavier_each_(weight: Tensor) -> None:
    """Initialise a stack (ratio, inputs, outputs) as the separate linear maps it is."""
    for matrix in weight:
        nn.init.xavier_uniform_(matrix)


class Attention(nn.Module):
    """Multi-head self-attention in the mixer's place: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, u: Tensor) -> Tensor:
        q, k, v = self.qkv(u).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """One DiffuSSM layer: (B, rows, D) and the condition (B, D) -> (B, rows, D)."""

    def __init__(self, config: DiffuSSMConfig) -> None:
        super().__init__()
        M, D = config.M, config.width
        self.norm = nn.LayerNorm(D, elementwise_affine=False, eps=1e-6)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 3 * D))
        self.shorten, self.lengthen = resampling(config)
        # Hourglass dense: U = s(Wup_k s(W0 I)), length J -> L
        self.w0 = nn.Linear(D, D)
        self.up = UpScale(M, D, D)
        self.mixer: nn.Module = Attention(D, config.heads) if config.mixer == "attention" else state_space(config)
        # Hourglass fusion: O = W3(s(W2 s(Wdown_k Y)) * s(W1 I)), length L -> J
        self.down = DownScale(M, config.mixed_width, 2 * D // M)
        self.w1 = nn.Linear(D, 2 * D)
        self.w2 = nn.Linear(2 * D, 2 * D)
        self.w3 = nn.Linear(2 * D, D)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=1)
        h = self.shorten(norm_modulate(x, self.norm, shift, scale))  # I: (B, J, D)
        u = s(self.up(s(self.w0(h))))  # U: (B, L, D)
        y = s(self.down(self.mixer(u)))  # I': (B, J, 2D)
        o = self.w3(s(self.w2(y)) * s(self.w1(h)))  # O: (B, J, D)
        return gated_sum(x, gate, self.lengthen(o))


def s(x: Tensor) -> Tensor:
    """The paper's unnamed nonlinearity: GELU, as in BiGS, whose gated block it cites."""
    return F.gelu(x, approximate="tanh")


def resampling(config: DiffuSSMConfig) -> tuple[nn.Module, nn.Module]:
    """How a block enters and leaves length J: not at all when its stream already lives there."""
    M, D = config.M, config.width
    if config.stream == "short" or M == 1:
        return nn.Identity(), nn.Identity()
    if config.resample == "pool":
        return MeanPool(M), Repeat(M)
    return DownScale(M, D, D // M), UpScale(M, D, D)


def state_space(config: DiffuSSMConfig) -> S4D:
    return S4D(
        config.width,
        state=config.state,
        init=config.init,
        direction=config.direction,
        join=config.join,
        discretisation=config.discretisation,
        lr_scale=config.ssm_lr_scale,
    )


def _size(depth: int, width: int, heads: int, **fields: object) -> dict[str, object]:
    return {"depth": depth, "width": width, "heads": heads, **fields}


TOY = {"size": (8, 8), "channels": 1, "classes": 10, "latent_factor": 1, "learn_sigma": False, "label_std": 1.0}

# The paper gives depth and width for XL, width 384 for S and a doubtful 786 for L; the rest follows DiT.
SIZES = {
    "s": _size(12, 384, 6),
    "l": _size(24, 1024, 16),
    "xl": _size(29, 1152, 16),
    "tiny": _size(3, 64, 4, state=16, **TOY),
}


@register("diffussm", sizes={name: DiffuSSMConfig(**fields) for name, fields in SIZES.items()})  # type: ignore[arg-type]
class DiffuSSM(Denoiser):
    config: DiffuSSMConfig

    def __init__(self, config: DiffuSSMConfig) -> None:
        super().__init__(config)
        D, group = config.width, config.group()
        self.x_embedder = nn.Linear(group * config.channels * config.P**2, D)
        self.t_embedder = TimestepEmbedder(D, TIME_FREQUENCIES)
        self.y_embedder = LabelEmbedder(config.label_rows, D) if config.classes else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        skips = config.depth // 2 if config.skip == "long" else 0
        self.skips = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(skips))
        self.final_layer = FinalLayer(D, group * config.out_channels * config.P**2)
        self.register_buffer("positions", self._positions(), persistent=False)
        self._initialise()

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        config = self.config
        rows = patchify(x, config.P).unflatten(1, (-1, config.group())).flatten(2)  # (B, J or L, pixels)
        h = self.x_embedder(rows) + self.positions.to(x.dtype)  # (B, J or L, D)
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(cast(Tensor, y))
        h = self._trunk(h, c)
        patches = self.final_layer(h, c).unflatten(2, (config.group(), -1)).flatten(1, 2)  # (B, L, P*P*out)
        return unpatchify(patches, config.grid(), config.P, config.out_channels)

    def _trunk(self, h: Tensor, c: Tensor) -> Tensor:
        """The blocks; with long skips, block depth-1-i first takes back what block i gave."""
        saved: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            mirror = len(self.blocks) - 1 - index
            if mirror < len(self.skips):
                h = self.skips[mirror](torch.cat([h, saved[mirror]], dim=-1))
            h = block(h, c)
            saved.append(h)
        return h

    @property
    def sees_both_ends(self) -> bool:
        return self.config.mixer == "attention" or self.config.direction == "both"

    def _positions(self) -> Tensor:
        """Sinusoids of the patch grid, averaged over the patches that share a residual vector."""
        config = self.config
        if config.positions == "none":
            return torch.zeros(1, config.width)
        with torch.device("cpu"):  # arithmetic on meta tensors takes a second to import
            positions = sincos_2d(*config.grid(), config.width).unflatten(0, (-1, config.group())).mean(1)
        return positions.to(torch.get_default_device())

    def _initialise(self) -> None:
        """As DiT: xavier linears, small embeddings, and blocks that start as the identity (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for weight in (p for p in self.t_embedder.parameters() if p.ndim == 2):
            nn.init.normal_(weight, std=0.02)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=self.config.label_std)
        for name, parameter in self.blocks.named_parameters():
            if "adaLN_modulation" in name:
                nn.init.zeros_(parameter)
        self.final_layer.zero_()


@dataclass(frozen=True, kw_only=True)
class PatchSSMConfig(DiffuSSMConfig):
    """The patchified baseline of the paper's hourglass figure: shorten by P x P patches, not by M.

    `diffussm` with the same P and M=1 is the same network under another name, and a run of its own: run ids
    hold the backbone's name. Compare by this name, so that the point is computed once.
    """

    P: int = 2
    M: int = 1

    def check(self) -> None:
        super().check()
        require(self.M == 1 and self.P > 1, "M, P", (self.M, self.P), "M=1 with P > 1 (else use diffussm)")


@register("patchssm", sizes={name: PatchSSMConfig(**fields) for name, fields in SIZES.items()})  # type: ignore[arg-type]
class PatchSSM(DiffuSSM):
    config: PatchSSMConfig
