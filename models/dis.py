"""DiS: bidirectional Mamba blocks with long skips, time and label as tokens (Fei et al., arXiv:2402.05608).

Module names are those of the released code, so its checkpoints load as they are. Where the paper is silent
or differs, the released code decides: width 368 for S, and `2 * (depth // 2) + 1` blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

from models import macs as cost
from models.denoiser import Denoiser, DenoiserConfig, register, require, require_choice
from models.layers.embeddings import LabelEmbedder, timestep_embedding
from models.layers.modulation import FinalLayer, modulate
from models.layers.patches import PatchEmbed, patch_grid, unpatchify
from models.macs import Macs
from models.ssm.selective_scan import scan_macs, selective_scan

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # step sizes at initialisation


@dataclass(frozen=True, kw_only=True)
class DiSConfig(DenoiserConfig):
    P: int = 2  # patch size
    depth: int = 24
    width: int = 368
    state: int = 16  # N, states per channel
    conv: int = 4  # taps of the depthwise convolution before the scan
    expand: int = 2
    skip: str = "concat"  # long skips: concat | add | none
    condition: str = "tokens"  # tokens: as released | adaln: no extra tokens, every block modulated and gated
    direction: str = "both"  # both | forward
    drop_path: float = 0.0  # of the last block, in training; linear from 0 at the first

    @property
    def blocks(self) -> int:
        return 2 * (self.depth // 2) + 1

    @property
    def inner(self) -> int:
        """E, the channels that are scanned."""
        return self.expand * self.width

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.width / 16)

    @property
    def extras(self) -> int:
        """Tokens before the patches: label (if there are classes), then time."""
        return 1 + (self.classes > 0) if self.condition == "tokens" else 0

    @property
    def modulated_output(self) -> bool:
        """The released code modulates its final layer only when it has labels."""
        return self.classes > 0 or self.condition == "adaln"

    def check(self) -> None:
        for field in ("P", "depth", "state", "conv", "expand"):
            require(getattr(self, field) > 0, field, getattr(self, field), "a positive integer")
        require(self.width > 0 and self.width % 2 == 0, "width", self.width, "a positive even integer")
        require_choice("skip", self.skip, ("concat", "add", "none"))
        require_choice("condition", self.condition, ("tokens", "adaln"))
        require_choice("direction", self.direction, ("both", "forward"))
        require(0 <= self.drop_path < 1, "drop_path", self.drop_path, "in [0, 1)")
        self.grid()

    def idle(self) -> set[str]:
        return super().idle() | ({"skip"} if self.depth == 1 else set())

    def grid(self, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches."""
        return patch_grid(size or self.size, self.P)

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        """Length of the scanned sequence: patches, and the label and time tokens before them."""
        rows, columns = self.grid(size)
        return rows * columns + self.extras

    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        L, D, cell = self.tokens(size), self.width, self.P * self.P
        embed = cost.linear(L - self.extras, cell * self.channels, D) + cost.linear(1, D, 4 * D)
        embed += cost.linear(1, 4 * D, D) + Macs(elementwise=4 * D + L * D)  # SiLU; + positions
        block = self._mixer_macs(L) + Macs(elementwise=2 * L * D)  # residual sum, norm
        if self.condition == "adaln":
            block += cost.linear(1, D, 3 * D) + Macs(elementwise=D + 2 * L * D)  # SiLU, modulate, gate
        final = cost.linear(L, D, cell * self.out_channels) + Macs(elementwise=3 * L * D)  # sum, two norms
        if self.modulated_output:
            final += cost.linear(1, D, 2 * D) + Macs(elementwise=D + L * D)
        return embed + self.blocks * block + (self.depth // 2) * self._join_macs(L) + final

    def _mixer_macs(self, L: int) -> Macs:
        E, directions = self.inner, 2 if self.direction == "both" else 1
        scan = Macs(matmul=L * E * self.conv, scan=scan_macs(L, E, self.state), elementwise=2 * L * E)  # SiLU, softplus
        way = cost.linear(L, E, self.dt_rank + 2 * self.state) + cost.linear(L, self.dt_rank, E) + scan
        gate = Macs(elementwise=(1 + directions) * L * E)  # SiLU, product, sum of the directions
        return cost.linear(L, self.width, 2 * E) + directions * way + gate + cost.linear(L, E, self.width)

    def _join_macs(self, L: int) -> Macs:
        concat = cost.linear(L, 2 * self.width, self.width)
        return {"concat": concat, "add": Macs(elementwise=L * self.width), "none": Macs()}[self.skip]


class BidirectionalMamba(nn.Module):
    """(B, L, D) -> (B, L, D): two selective scans, from either end, share projections in and out and the gate."""

    def __init__(self, config: DiSConfig) -> None:
        super().__init__()
        D, E, N, R, k = config.width, config.inner, config.state, config.dt_rank, config.conv
        self.both = config.direction == "both"
        self.no_weight_decay = ("A_log", "D", "A_b_log", "D_b") if self.both else ("A_log", "D")
        self.in_proj = nn.Linear(D, 2 * E, bias=False)
        self.conv1d = nn.Conv1d(E, E, k, groups=E)
        self.x_proj = nn.Linear(E, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, E)
        self.A_log, self.D = nn.Parameter(torch.empty(E, N)), nn.Parameter(torch.empty(E))
        if self.both:
            self.conv1d_b = nn.Conv1d(E, E, k, groups=E)
            self.x_proj_b = nn.Linear(E, R + 2 * N, bias=False)
            self.dt_proj_b = nn.Linear(R, E)
            self.A_b_log, self.D_b = nn.Parameter(torch.empty(E, N)), nn.Parameter(torch.empty(E))
        self.out_proj = nn.Linear(E, D, bias=False)

    @torch.no_grad()
    def initialise(self, depth: int) -> None:
        """A = -(1..N), D = 1, forward steps log-uniform, and an output scaled down with depth.

        In the released code, and here, the biases of the backward direction's steps are lost to the zeroing
        of all biases: those steps start near softplus(0) = 0.69.
        """
        if self.A_log.is_meta:  # no values to set, and arithmetic on meta tensors takes a second to import
            return
        A_logs, Ds = ([self.A_log, self.A_b_log], [self.D, self.D_b]) if self.both else ([self.A_log], [self.D])
        for A_log, D in zip(A_logs, Ds, strict=True):
            A_log.copy_(torch.arange(1, A_log.shape[1] + 1, device=A_log.device).log().expand_as(A_log))
            D.fill_(1.0)
        dt = torch.empty_like(self.dt_proj.bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp(min=DT_FLOOR)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        self.out_proj.weight /= math.sqrt(depth)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # each (B, E, L)
        y = scan_forward(x, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        if self.both:
            y_b = scan_forward(x.flip(-1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
            y = y + y_b.flip(-1)
        return self.out_proj((y * silu(gate)).transpose(1, 2))


def scan_forward(x: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor) -> Tensor:
    """Short causal convolution, then a scan whose step and B, C depend on its input: (B, E, L) -> (B, E, L)."""
    x = silu(conv(pad(x, (conv.kernel_size[0] - 1, 0))))
    N = A_log.shape[1]
    dt, B, C = x_proj(x.transpose(1, 2)).split([dt_proj.in_features, N, N], dim=-1)
    delta = linear(dt, dt_proj.weight).transpose(1, 2)  # the bias joins in float32, inside the scan
    return selective_scan(x, delta, -torch.exp(A_log), B.transpose(1, 2), C.transpose(1, 2), D, delta_bias=dt_proj.bias)


class DropPath(nn.Module):
    """Stochastic depth: in training, leave out an image's branch with probability `rate`, and scale up the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """Add, norm, mix. `hidden`, the last mixer's output, joins the stream only here: skips carry mixer outputs."""

    def __init__(self, config: DiSConfig, drop_path: float, joins: bool) -> None:
        super().__init__()
        D = config.width
        self.mixer = BidirectionalMamba(config)
        self.norm = nn.RMSNorm(D, eps=1e-5)
        self.drop_path = DropPath(drop_path)
        self.skip_linear = nn.Linear(2 * D, D) if joins and config.skip == "concat" else None
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 3 * D)) if config.condition == "adaln" else None

    def forward(
        self, hidden: Tensor, residual: Tensor, condition: Tensor, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if skip is not None:
            hidden = hidden + skip if self.skip_linear is None else self.skip_linear(torch.cat([hidden, skip], dim=-1))
        residual = residual + self.drop_path(hidden)
        normed = self.norm(residual.to(self.norm.weight.dtype))
        if self.adaLN_modulation is None:
            return self.mixer(normed), residual
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=1)
        return gate[:, None] * self.mixer(modulate(normed, shift, scale)), residual


class UnmodulatedFinalLayer(nn.Module):
    """Norm and a linear map to pixels, as released for models without labels."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(self.norm_final(x))


def _named(letter: str, depth: int, width: int) -> dict[str, DiSConfig]:
    """The two patch sizes of one published width, on the 32 x 32 latents of 256-pixel images."""
    return {f"{letter}/{P}": DiSConfig(P=P, depth=depth, width=width, drop_path=0.1) for P in (4, 2)}


TINY = DiSConfig(
    size=(8, 8),
    channels=1,
    classes=10,
    learn_sigma=False,
    latent_factor=1,
    label_std=1.0,
    P=2,
    depth=4,
    width=64,
    state=8,
)

SIZES: dict[str, DiSConfig] = {
    **_named("s", 24, 368),
    **_named("b", 24, 768),
    **_named("m", 48, 768),
    **_named("l", 48, 1024),
    **_named("h", 48, 1536),
    "tiny": TINY,
    # Told its label in every block, and half the work: learns 8 x 8 digits in two minutes of one core.
    "tiny-adaln": replace(TINY, condition="adaln", depth=2, state=4),
}


@register("dis", sizes=SIZES)
class DiS(Denoiser):
    config: DiSConfig
    zero_init_output = False

    def __init__(self, config: DiSConfig) -> None:
        super().__init__(config)
        D, half = config.width, config.depth // 2
        self.patch_embed = PatchEmbed(config.channels, config.P, D)
        self.time_embed = nn.Sequential(nn.Linear(D, 4 * D), nn.SiLU(), nn.Linear(4 * D, D))
        if config.classes:
            self.label_emb = LabelEmbedder(config.label_rows, D)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens(), D))
        # The first block has nothing to drop: what enters it is the image.
        rates = [0.0] + [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.in_blocks = nn.ModuleList(Block(config, rates[i], joins=False) for i in range(half))
        self.mid_block = Block(config, rates[half], joins=False)
        self.out_blocks = nn.ModuleList(Block(config, rates[half + 1 + i], joins=True) for i in range(half))
        self.drop_path = DropPath(config.drop_path)
        self.norm_f = nn.RMSNorm(D, eps=1e-5)
        final_layer = FinalLayer if config.modulated_output else UnmodulatedFinalLayer
        self.final_layer = final_layer(D, config.P * config.P * config.out_channels)
        self.initialise()

    @property
    def sees_both_ends(self) -> bool:
        return self.config.direction == "both"

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        hidden, condition = self.embed(self.patch_embed(x), t, y)
        # The residual stream stays in float32 in a half-precision network.
        residual = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
        skips: list[Tensor] = []
        for block in self.in_blocks:
            hidden, residual = block(hidden, residual, condition)
            skips.append(hidden)
        hidden, residual = self.mid_block(hidden, residual, condition)
        for block in self.out_blocks:
            skip = skips.pop() if self.config.skip != "none" else None
            hidden, residual = block(hidden, residual, condition, skip)
        residual = residual + self.drop_path(hidden)
        hidden = self.norm_f(residual.to(self.norm_f.weight.dtype))
        patches = self.final_layer(hidden, condition)[:, self.config.extras :]  # (B, patches, P*P*out_channels)
        return unpatchify(patches, self.config.grid(), self.config.P, self.config.out_channels)

    def embed(self, patches: Tensor, t: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens with positions (B, L, D), and the condition (B, D) that modulates."""
        sinusoids = timestep_embedding(t, self.config.width).to(self.pos_embed.dtype)
        time = self.time_embed(sinusoids)
        given = [time] if y is None else [self.label_emb(y), time]
        if self.config.condition == "tokens":
            patches = torch.cat([*(token[:, None] for token in given), patches], dim=1)
        return patches + self.pos_embed, sum(given[1:], given[0])

    @torch.no_grad()
    def initialise(self) -> None:
        """The released code's: torch's defaults for matrices and convolutions, biases of matrices zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.label_std)
        for module in self.modules():
            if isinstance(module, BidirectionalMamba):
                module.initialise(self.config.depth)
            elif isinstance(module, Block) and module.adaLN_modulation is not None:
                nn.init.zeros_(module.adaLN_modulation.get_parameter("1.weight"))  # gates shut
