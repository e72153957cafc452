"""Images to raster-ordered patch tokens and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.denoiser import require


def patch_grid(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of P x P patches."""
    height, width = size
    require(height % patch_size == 0 and width % patch_size == 0, "size", size, f"divisible by P={patch_size}")
    return height // patch_size, width // patch_size


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, H/P * W/P, width) by one P x P convolution of stride P."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch_size: int, channels: int) -> Tensor:
    """(B, h*w, P*P*C), each token laid out (row, column, channel) -> (B, C, h*P, w*P)."""
    (h, w), p = grid, patch_size
    cells = tokens.reshape(tokens.shape[0], h, w, p, p, channels)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], channels, h * p, w * p)


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """The inverse of `unpatchify`: (B, C, H, W) -> (B, h*w, P*P*C)."""
    b, c, height, width = x.shape
    p = patch_size
    cells = x.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1)
    return cells.reshape(b, (height // p) * (width // p), p * p * c)


def xavier_as_linear_(conv: nn.Conv2d) -> None:
    """Initialise a patch convolution like the linear layer it is, as DiT does."""
    with torch.no_grad():
        nn.init.xavier_uniform_(conv.weight.view(conv.out_channels, -1))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
