"""Encoding by any number of workers: each takes a shard that nobody has, until none is left.

A shard is a function of its images, the autoencoder and the batch it is encoded in: whoever makes it, after
however many kills, makes the same bytes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from study.atomic import remove_leftovers
from study.data.source import Source
from study.latents.autoencoder import Autoencoder
from study.latents.files import EncodingPlan, claim_plan, conclude, is_concluded, read_shard, write_shard
from study.lease import Lease, take

log = logging.getLogger(__name__)

CLAIMS = "claims"
AHEAD = 4  # batches that a source may decode while one is encoded
POLL = 2.0  # seconds between looks at what other workers have in hand

Tell = Callable[[int, int], object]
"""Hears how many shards there are, and of how many."""


def encode(
    source: Source,
    autoencoder: Autoencoder,
    plan: EncodingPlan,
    folder: Path,
    device: torch.device,
    worker: int = 0,
    workers: int = 1,
    tell: Tell = lambda done, total: None,
) -> None:
    """Do what is missing, wait for what others are doing, and conclude."""
    claim_plan(folder, plan)
    autoencoder = autoencoder.to(device)
    first = worker * plan.shards // workers
    while left := _missing(folder, plan, first):
        busy = 0
        for turn, number in enumerate(left):
            tell(plan.shards - len(left) + turn, plan.shards)
            busy += not _encode_if_free(source, autoencoder, plan, folder, number, device)
        if busy:
            time.sleep(POLL)
    tell(plan.shards, plan.shards)

    def end() -> None:
        remove_leftovers(folder)  # nobody else writes here: all shards are there, and the rest is ours
        conclude(folder, plan)

    once(folder / CLAIMS, lambda: is_concluded(folder, plan), end)


def once(claims: Path, is_done: Callable[[], bool], act: Callable[[], object]) -> None:
    """By whichever worker comes first; the others wait. The claims go when it is done."""
    while not is_done():
        lease = _take(claims / "end")
        if lease is None:
            time.sleep(POLL)
            continue
        with lease:
            if not is_done():
                act()
    shutil.rmtree(claims, ignore_errors=True)


def _take(claim: Path) -> Lease | None:
    """Should it be lost, two workers write the same bytes. None: look again."""
    try:
        return take(claim, on_loss=lambda: None)
    except FileNotFoundError:  # another worker saw that all was done, and tidied up
        return None


def _missing(folder: Path, plan: EncodingPlan, first: int) -> list[int]:
    """Shards that are not there, beginning with this worker's own."""
    order = [(first + turn) % plan.shards for turn in range(plan.shards)]
    return [number for number in order if read_shard(folder, number) is None]


def _encode_if_free(
    source: Source, autoencoder: Autoencoder, plan: EncodingPlan, folder: Path, number: int, device: torch.device
) -> bool:
    """Whether this worker had anything to do with the shard."""
    lease = _take(folder / CLAIMS / f"{number:05d}")
    if lease is None:
        return False
    with lease:
        if read_shard(folder, number) is None:
            part = plan.part(number)
            array = encode_part(source, autoencoder, plan, part, device)
            labels = source.labels[part.start : part.stop].cpu().numpy()
            write_shard(folder, number, array, labels if plan.classes else np.zeros(len(part), np.int64))
    return True


def encode_part(
    source: Source, autoencoder: Autoencoder, plan: EncodingPlan, part: range, device: torch.device
) -> np.ndarray:
    """(n, 2, 2, C, h, w): of every image as it is and mirrored, mean and deviation."""
    array = np.empty((len(part), 2, 2, plan.channels, *plan.size), dtype=plan.dtype)
    indices = torch.arange(part.start, part.stop).split(plan.batch)
    for turn, index in enumerate(indices):
        source.expect(indices[turn : turn + AHEAD])
        images = _padded(source.batch(index).to(device), plan.batch)
        here = slice(turn * plan.batch, turn * plan.batch + len(index))
        for flipped, seen in enumerate((images, images.flip(-1))):
            array[here, flipped] = _moments(autoencoder, seen, len(index))
    return array


def _padded(images: Tensor, batch: int) -> Tensor:
    """Batches of one size: kernels, and so rounding, may depend on it."""
    missing = batch - len(images)
    return torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images


def _moments(autoencoder: Autoencoder, images: Tensor, count: int) -> np.ndarray:
    mean, deviation = autoencoder.moments(images)
    moments = torch.stack([mean, deviation], dim=1)[:count].float().cpu()  # (n, 2, C, h, w)
    if not bool(torch.isfinite(moments).all()):
        raise ValueError("the autoencoder made NaN or infinity: is it whole, and meant for these images?")
    return moments.numpy()
