"""Class agreement: how often an embedded classifier sees in a conditional sample the class that was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from models.denoiser import require
from study.score.extractors import embedded
from study.stats import Interval, wilson_interval

BATCH = 500


def class_agreement(samples: Tensor, labels: Tensor, data: str) -> float:
    """Share of uint8 samples (N,C,H,W) classified as their label. Real images of the set reach about 0.99."""
    return agreement_hits(samples, labels, data) / len(samples)


def class_agreement_interval(samples: Tensor, labels: Tensor, data: str) -> Interval:
    """95 %, over draws of samples."""
    return wilson_interval(agreement_hits(samples, labels, data), len(samples))


@torch.no_grad()
def agreement_hits(samples: Tensor, labels: Tensor, data: str) -> int:
    require(labels.shape == samples.shape[:1], "labels.shape", tuple(labels.shape), "one label per sample")
    require(len(samples) > 0, "samples", 0, "at least one image")
    network = embedded(data)
    classes = network.config.classes
    known = bool((labels >= 0).all() and (labels < classes).all())
    require(known, "labels", f"{int(labels.min())}..{int(labels.max())}", f"0..{classes - 1}, the classes of {data}")
    predicted = torch.cat([network.classify(batch).argmax(dim=1) for batch in samples.split(BATCH)])
    return int((predicted == labels).sum())
