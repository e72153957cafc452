"""Which of a set's images are trained on, held out, or kept as reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from study.data.dataset import DataConfig, Split

Numbers = NDArray[np.int64]


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of which every slice has each class in proportion.

    Each class is shuffled and spread evenly over (0, 1); images are taken in order of their place.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


def dealt(labels: Numbers, apart: NDArray[np.bool_], config: DataConfig, split: Split) -> Numbers:
    """Numbers of the split's images.

    Held-out and reference images come from those the set keeps `apart`; if it keeps none, out of all, before training
    images are taken. No image is in two splits.
    """
    order = stratified_order(labels, config.seed)
    heldout, reference = config.images("heldout"), config.images("reference")
    kept_apart = bool(apart.any())
    pool = order[apart[order]] if kept_apart else order
    if split == "heldout":
        return pool[:heldout]
    if split == "reference":
        return pool[heldout : heldout + reference]
    train = order[~apart[order]] if kept_apart else order[heldout + reference :]
    return train[: config.images("train")]
