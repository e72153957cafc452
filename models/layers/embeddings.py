"""Time, label and position embeddings, in the layout of the DiT code."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of t (B,), cosines first: (B, width) in float32; an odd width ends in a zero."""
    half = width // 2
    ramp = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * ramp / half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(embedding, (0, width % 2))


class TimestepEmbedder(nn.Module):
    """(B,) -> (B, width): sinusoids, then a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 256, hidden: int | None = None) -> None:
        super().__init__()
        self.frequencies = frequencies
        hidden = hidden or width
        self.mlp = nn.Sequential(nn.Linear(frequencies, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, t: Tensor) -> Tensor:
        # The sinusoids are float32 whatever the network's dtype: bf16 cannot tell t=900 from t=901.
        return self.mlp(timestep_embedding(t, self.frequencies).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """(B,) labels -> (B, width): one row per class, and the null class last when there is one."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


def sincos_1d(positions: np.ndarray, width: int) -> np.ndarray:
    """(N,) positions -> (N, width), sines first."""
    frequencies = 10_000.0 ** -(np.arange(width // 2, dtype=np.float64) / (width / 2.0))
    angles = np.outer(positions, frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(height: int, width_cells: int, width: int) -> Tensor:
    """Fixed positions of a raster-ordered grid: (height * width_cells, width), float32.

    The first half of the channels encodes the *column*, as in the DiT code. Computed in float64.
    """
    if width % 4:
        raise ValueError(f"width={width} is not valid: must be a multiple of 4 for 2-D sinusoids")
    rows, columns = np.meshgrid(np.arange(height), np.arange(width_cells), indexing="ij")
    embedding = [sincos_1d(axis.reshape(-1).astype(np.float64), width // 2) for axis in (columns, rows)]
    return torch.tensor(np.concatenate(embedding, axis=1), dtype=torch.float32)  # on the default device
