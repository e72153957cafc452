"""Samples as others read them: ADM's batches byte for byte, grids pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import study.sample_files
from study.sample import Samples
from study.sample_files import GRID_LINE, write_for_adm, write_grid


@pytest.mark.parametrize("channels", [1, 3])
def test_adm_layout(tmp_path: Path, channels: int) -> None:
    images = torch.randint(256, (5, channels, 4, 6), dtype=torch.uint8)
    write_for_adm(tmp_path / "batch.npz", Samples(images, torch.arange(5)))
    with np.load(tmp_path / "batch.npz", allow_pickle=False) as file:
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_0"].shape == (5, 4, 6, 3)
        np.testing.assert_array_equal(file["arr_0"][..., channels - 1], images[:, channels - 1].numpy())
        np.testing.assert_array_equal(file["arr_0"][..., 0], images[:, 0].numpy())
        assert file["arr_1"].tolist() == [0, 1, 2, 3, 4]


def test_adm_files_are_those_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written piece by piece, and the very bytes of one call."""
    monkeypatch.setattr(study.sample_files, "WRITTEN_AT_ONCE", 2)
    images = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8)
    write_for_adm(tmp_path / "batch.npz", Samples(images, torch.arange(5)))
    np.savez(tmp_path / "numpy.npz", arr_0=images.permute(0, 2, 3, 1).contiguous().numpy(), arr_1=np.arange(5))
    assert (tmp_path / "batch.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_grid_places_images_row_by_row(tmp_path: Path) -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].mul(50).expand(5, 1, 8, 16)
    write_grid(tmp_path / "grid.png", images, columns=3)
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert pixels.shape == (2 * (32 + GRID_LINE), 3 * (64 + GRID_LINE), 3)
    corners = pixels[GRID_LINE :: 32 + GRID_LINE, GRID_LINE :: 64 + GRID_LINE, 0]
    assert corners.tolist() == [[0, 50, 100], [150, 200, 128]]
    assert (pixels[:GRID_LINE] == 128).all()


def test_images_of_other_channels_are_not_drawn(tmp_path: Path) -> None:
    latents = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="channels=4"):
        write_for_adm(tmp_path / "x.npz", Samples(latents, None))
    with pytest.raises(ValueError, match="channels=4"):
        write_grid(tmp_path / "x.png", latents)
