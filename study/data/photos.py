"""Crops of scikit-learn's two bundled photographs, at their own resolution: natural texture, no semantics.

Each photograph is cut into five upright bands; training crops come from bands 0, 2 and 4, held-out
ones from 1, reference ones from 3. No pixel is shared, so memorisation shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from study.data.dataset import DataConfig, Dataset, Split, register, stream

HEIGHT, WIDTH, BANDS = 427, 640, 5
BAND = WIDTH // BANDS
SPLIT_BANDS: dict[Split, tuple[int, ...]] = {"train": (0, 2, 4), "heldout": (1,), "reference": (3,)}
PHOTOS = ("china.jpg", "flower.jpg")


def places(side: int, split: Split) -> tuple[int, int, int]:
    """Where a crop can lie in one photograph: bands, rows, columns within a band."""
    return len(SPLIT_BANDS[split]), HEIGHT - side + 1, BAND - side + 1


def _offer(side: int) -> Dataset:
    most = [len(PHOTOS) * int(np.prod(places(side, split))) for split in SPLIT_BANDS]
    return Dataset(
        name=f"photos{side}",
        size=(side, side),
        channels=3,
        classes=len(PHOTOS),
        counts=(10_000, 1_000, 5_000),
        limits=(most[0], most[1], most[2]),
    )


@register(*[_offer(side) for side in (16, 32, 64)])
def draw_photos(offer: Dataset, config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    """Crops in random order, no place twice, the photographs in turn."""
    from sklearn.datasets import load_sample_image  # a second to import: only when asked for

    side, count, rng = offer.size[0], config.images(split), stream(config.seed, split)
    images = np.empty((count, side, side, 3), np.uint8)
    for label, photo in enumerate(PHOTOS):
        crops = np.lib.stride_tricks.sliding_window_view(load_sample_image(photo), (side, side), axis=(0, 1))
        order = rng.permutation(int(np.prod(places(side, split))))[: len(images[label :: len(PHOTOS)])]
        band, top, left = np.unravel_index(order, places(side, split))
        left = left + BAND * np.array(SPLIT_BANDS[split])[band]
        images[label :: len(PHOTOS)] = np.moveaxis(crops[top, left], 1, -1)  # (n, C, H, W) -> (n, H, W, C)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.arange(count) % len(PHOTOS)
