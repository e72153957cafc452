"""Samples as others read them: the batch of ADM's evaluator, and a grid to look at."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.denoiser import require
from study.atomic import write_file
from study.sample import Samples

GRID_LINE = 2  # pixels between the images of a grid
WRITTEN_AT_ONCE = 256  # images


def write_for_adm(path: Path, samples: Samples) -> None:
    """The batch that ADM's evaluator reads: arr_0 uint8 (N, H, W, 3), arr_1 labels if any. Grey becomes RGB."""
    count, channels, *size = samples.images.shape
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB) to be an image")
    pixels = (part.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy() for part in samples.images.split(WRITTEN_AT_ONCE))

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
                np.lib.format.write_array_header_1_0(file, header)
                for part in pixels:
                    file.write(part.tobytes())
            if samples.labels is not None:
                with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, samples.labels.numpy(), allow_pickle=False)

    write_file(path, write)


def write_grid(path: Path, images: Tensor, columns: int = 10, least_side: int = 32) -> None:
    """A PNG of uint8 images (N,C,H,W) row by row, small ones enlarged by whole pixels, with grey lines between."""
    count, channels, height, width = images.shape
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB) to be drawn")
    rows = -(-count // columns)
    zoom = max(1, -(-least_side // min(height, width)))
    cells = images.expand(-1, 3, -1, -1).repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    h, w = height * zoom + GRID_LINE, width * zoom + GRID_LINE
    sheet = torch.full((rows * columns, 3, h, w), 128, dtype=torch.uint8)
    sheet[:count, :, GRID_LINE:, GRID_LINE:] = cells
    table = sheet.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    write_file(path, lambda temporary: Image.fromarray(table.numpy()).save(temporary, format="PNG"))
