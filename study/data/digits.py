"""scikit-learn's bundled 8x8 digits: 1797 grey images of 10 classes, the set of tests and quick studies."""

from __future__ import annotations

import torch
from torch import Tensor

from study.data.dataset import SPLITS, DataConfig, Dataset, Split, register
from study.data.images import to_uint8
from study.data.splits import stratified_order

POOLS = (1100, 297, 400)  # train, heldout, reference: disjoint, and together all 1797


@register(Dataset(name="digits8", size=(8, 8), channels=1, classes=10, counts=POOLS, limits=POOLS))
def draw_digits(offer: Dataset, config: DataConfig, split: Split) -> tuple[Tensor, Tensor]:
    """The first images of the split's pool. The seed deals all images into the three pools.

    The reference is disjoint from the training images, so a memorised sample gains nothing there.
    """
    from sklearn.datasets import load_digits  # a second to import: only when asked for

    digits = load_digits()
    start = sum(POOLS[: SPLITS.index(split)])
    chosen = stratified_order(digits.target, config.seed)[start : start + config.images(split)]
    images = torch.from_numpy(digits.images[chosen]).float()[:, None]  # 0..16
    return to_uint8(images / 8 - 1), torch.from_numpy(digits.target[chosen]).long()
