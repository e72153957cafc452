"""The shared layers equal the reference codes' and undo each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.layers.embeddings import LabelEmbedder, TimestepEmbedder, sincos_2d, timestep_embedding
from models.layers.modulation import FinalLayer, modulate
from models.layers.patches import PatchEmbed, patchify, unpatchify, xavier_as_linear_
from tests.parity_arrays import assert_forward, load_parity

EMBEDDINGS = load_parity("embeddings")


@pytest.mark.parametrize("width", [256, 32, 33])
def test_timestep_embedding_equals_the_reference(width: int) -> None:
    expected = EMBEDDINGS.tensor(f"timestep_embedding/{width}")
    assert_forward(timestep_embedding(EMBEDDINGS.tensor("t"), width), expected)


@pytest.mark.parametrize(("width", "side"), [(48, 4), (32, 5)])
def test_grid_positions_equal_the_reference(width: int, side: int) -> None:
    expected = EMBEDDINGS.tensor(f"pos_embed_2d/{width}_{side}")
    torch.testing.assert_close(sincos_2d(side, side, width).double(), expected, rtol=0, atol=1e-7)


def test_timestep_embedding_is_a_rotation_that_time_composes() -> None:
    """cos(a + b) = cos a cos b - sin a sin b, frequency by frequency."""
    cos, sin = timestep_embedding(torch.tensor([20.0, 35.0, 55.0]), 64).double().chunk(2, dim=1)
    torch.testing.assert_close(cos[2], cos[0] * cos[1] - sin[0] * sin[1], rtol=0, atol=1e-5)


def test_the_first_half_of_grid_positions_depends_on_the_column_alone() -> None:
    grid = sincos_2d(3, 5, 16).reshape(3, 5, 16)
    columns, rows = grid[..., :8], grid[..., 8:]
    assert torch.equal(columns, columns[:1].expand(3, 5, 8))
    assert torch.equal(rows, rows[:, :1].expand(3, 5, 8))
    assert len(np.unique(grid.reshape(15, 16).numpy(), axis=0)) == 15


def test_grid_positions_are_made_on_the_default_device() -> None:
    """A network is built, and costed, under `torch.device("meta")`: a stray CPU table would stop it."""
    with torch.device("meta"):
        assert sincos_2d(2, 3, 8).is_meta


def test_grid_positions_refuse_a_width_without_four_parts() -> None:
    with pytest.raises(ValueError, match="width=18 is not valid: must be a multiple of 4"):
        sincos_2d(2, 2, 18)


def test_neighbouring_times_stay_apart_in_bfloat16() -> None:
    embedder = TimestepEmbedder(16).bfloat16()
    out = embedder(torch.tensor([900.0, 901.0]))
    assert out.dtype == torch.bfloat16
    assert (out[0] != out[1]).any()


def test_label_rows() -> None:
    embedder = LabelEmbedder(11, 8)
    assert torch.equal(embedder(torch.tensor([10, 0])), embedder.embedding_table.weight[[10, 0]])


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), patch=st.integers(1, 4), channels=st.integers(1, 3))
def test_patches_round_trip(rows: int, columns: int, patch: int, channels: int) -> None:
    x = torch.arange(2 * channels * rows * columns * patch * patch, dtype=torch.float32)
    x = x.reshape(2, channels, rows * patch, columns * patch)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, (rows, columns), patch, channels), x)


def test_tokens_are_raster_ordered_and_laid_out_row_column_channel() -> None:
    x = torch.zeros(1, 2, 4, 6)
    x[0, 1, 3, 2] = 1.0  # channel 1; patch row 1, column 1; inside it row 1, column 0
    token, place = torch.nonzero(patchify(x, 2)[0])[0].tolist()
    assert token == 1 * 3 + 1
    assert place == (1 * 2 + 0) * 2 + 1


def test_patch_embedding_is_a_linear_map_of_the_patch() -> None:
    embed = PatchEmbed(channels=3, patch_size=2, width=5)
    xavier_as_linear_(embed.proj)
    x = torch.randn(2, 3, 4, 6)
    weight = embed.proj.weight.permute(0, 2, 3, 1).reshape(5, -1)  # to (row, column, channel)
    torch.testing.assert_close(embed(x), patchify(x, 2) @ weight.T)
    bound = math.sqrt(6 / (5 + 3 * 2 * 2))
    assert embed.proj.weight.abs().max() <= bound
    assert (embed.proj.bias == 0).all()


def test_modulation_of_nothing_is_the_identity_and_zeroed_output_is_zero() -> None:
    x, zero = torch.randn(2, 3, 8), torch.zeros(2, 8)
    assert torch.equal(modulate(x, zero, zero), x)
    torch.testing.assert_close(modulate(x, zero + 2, zero + 1), 2 * x + 2)
    final = FinalLayer(8, 5)
    assert final(x, torch.randn(2, 8)).abs().max() > 0
    final.zero_()
    assert (final(x, torch.randn(2, 8)) == 0).all()
