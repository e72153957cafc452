"""The blocks of the ADM U-Net and of its latent-diffusion variant, under the official codes' names."""

from __future__ import annotations

from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate, scaled_dot_product_attention

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def zeroed(module: AnyModule) -> AnyModule:
    """Every residual branch, and the output, starts at zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = conv3x3(width, width, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv3x3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class ResBlock(nn.Module):
    """Two convolutions with time and label entering in between: (B, inputs, h, w) -> (B, outputs, h', w').

    A resampling block halves or doubles h and w of both branches, after the first norm and activation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        emb_width: int,
        norm_groups: int,
        resample: Literal["none", "down", "up"] = "none",
        scale_shift: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(nn.GroupNorm(norm_groups, inputs), nn.SiLU(), conv3x3(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_width, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(norm_groups, outputs), nn.SiLU(), nn.Dropout(dropout), zeroed(conv3x3(outputs, outputs))
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, activation, conv = self.in_layers
        h = conv(self._resampled(activation(norm(x))))
        h = self._modulated_out(h, self.emb_layers(emb)[..., None, None])
        return self.skip_connection(self._resampled(x)) + h

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return avg_pool2d(x, 2)
        return interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def _modulated_out(self, h: Tensor, emb: Tensor) -> Tensor:
        if not self.scale_shift:
            return self.out_layers(h + emb)
        scale, shift = emb.chunk(2, dim=1)  # the order of the official code; a transformer's is shift, scale
        norm, activation, dropout, conv = self.out_layers
        return conv(dropout(activation(norm(h) * (1 + scale) + shift)))


class AttentionBlock(nn.Module):
    """Residual self-attention over positions, (B, C, h, w) -> (B, C, h, w).

    The two packings of `qkv` have the same shape: a checkpoint read in the wrong order loads and is silently wrong.
    """

    def __init__(self, width: int, heads: int, order: str, norm_groups: int) -> None:
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = nn.GroupNorm(norm_groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x).flatten(2))  # (B, 3 C, h w)
        if self.order == "legacy":
            qkv = qkv.unflatten(1, (self.heads, 3, -1)).transpose(1, 2)
        else:
            qkv = qkv.unflatten(1, (3, self.heads, -1))
        # Fused kernels want the channels of a head side by side.
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)  # each (B, heads, h w, C/heads)
        mixed = scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)  # (B, C, h w)
        return x + self.proj_out(mixed).view_as(x)


class CrossAttention(nn.Module):
    """Queries from x (B, L, D), keys and values from a context (B, K, context width)."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected)
        return self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity stands where the official code has an unused dropout: it numbers the layers.
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(width, heads, width)
        self.attn2 = CrossAttention(width, heads, context_width)
        self.ff = FeedForward(width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        h = self.norm2(x)
        x = x + self.attn2(h, h if context is None else context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over positions, (B, C, h, w) and context (B, K, context width) -> (B, C, h, w).

    With the single token of a class label the weights of `attn2` are 1 whatever the query: it adds
    a projection of the label, and its `to_q`, `to_k` and `norm2` receive zero gradients.
    """

    def __init__(self, width: int, heads: int, context_width: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, width, eps=1e-6)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, context_width)])
        self.proj_out = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h w, C)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))
