"""Images from a trained denoiser. Sample i is a function of the seed and i: not of the batch it was drawn in,
nor of how many workers drew how much, and its noise and label are the same for every backbone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models import Denoiser
from models.denoiser import require, require_choice
from study.atomic import write_file, write_json
from study.captured import captured
from study.data.images import to_uint8
from study.diffusion import Denoise, Process, SamplerConfig, guided
from study.draws import generator
from study.npz import read_npz_file
from study.process.base import Network
from study.process.guidance import check_guidance
from study.strict_json import parse_json

log = logging.getLogger(__name__)

LABEL_POLICIES = ("balanced", "random")
CPU = torch.device("cpu")
MEANING = "meaning.json"
IN_MEMORY = 1 << 30  # bytes of images; more are mapped from a file

Decode = Callable[[Tensor], Tensor]
"""What the process made (B,C,H,W) -> uint8 images (B,C',H',W')."""

Tell = Callable[[float], object]
"""Hears how many samples are made."""


class Samples(NamedTuple):
    images: Tensor  # uint8 (N, C, H, W) on the CPU, grey or colour as the data are; many are mapped from a file
    labels: Tensor | None  # int64 (N,); None: unconditional


@dataclass(frozen=True)
class Drawing:
    """Samples of what, and how they are drawn.

    `check` is called before every evaluation of the network and may raise to stop; `tell` hears how many
    samples there are, those under way in part, at the start and after every evaluation.
    """

    denoiser: Denoiser
    process: Process
    sampler: SamplerConfig
    seed: int = 0
    labels: str = "balanced"
    batch_size: int = 250
    decode: Decode = to_uint8
    decoder: str = ""  # what `decode` is, where nothing else says it
    precision: str = "fp32"  # the network is evaluated in
    check: Callable[[], object] = lambda: None
    tell: Tell = lambda done: None

    def __post_init__(self) -> None:
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive integer")
        require_choice("labels", self.labels, LABEL_POLICIES)
        self.process.check_denoiser(self.denoiser.config.learn_sigma)
        self.process.check_sampler(self.sampler)
        check_guidance(self.denoiser.config, self.sampler)

    def meaning(self) -> dict[str, Any]:
        """What samples depend on besides their indices, as JSON."""
        parts = {
            "backbone": {"name": type(self.denoiser).__name__, **asdict(self.denoiser.config)},
            "weights": weights_digest(self.denoiser),
            "process": {"name": type(self.process).__name__, **asdict(self.process.config)},
            "sampler": asdict(self.sampler),
            "seed": self.seed,
            "labels": self.labels,
            "decoder": self.decoder,
            "precision": self.precision,
        }
        plain: dict[str, Any] = json.loads(json.dumps(parts))
        return plain

    def batches(self, indices: range, have: Iterable[range] = ()) -> Iterator[tuple[range, Samples]]:
        """Those of these samples that are not there yet, one batch after another."""
        missing = _missing(indices, have, self.batch_size)
        done = len(indices) - sum(map(len, missing))
        self.tell(done)
        device = next(self.denoiser.parameters()).device
        with _evaluating(self.denoiser):
            network = captured(self.denoiser, device)
            for part in missing:
                yield part, self._batch(network, device, part, done)
                done += len(part)

    @torch.no_grad()
    def _batch(self, network: Network, device: torch.device, indices: range, done: int) -> Samples:
        config = network.config
        labels = labels_of(indices, config.classes, self.labels, self.seed)
        noise = SampleNoise(indices, (config.channels, *config.size), self.seed, device)
        steps = _Steps(self.check, self.tell, done, len(indices), self.process.calls(self.sampler))
        denoise = steps.around(guided(network, None if labels is None else labels.to(device), self.sampler))
        images = self.decode(self.process.sample(denoise, noise.draw(), self.sampler, noise)).cpu()
        require(images.dtype == torch.uint8, "images.dtype", images.dtype, "torch.uint8, from `decode`")
        return Samples(images, labels)


def sample(
    denoiser: Denoiser,
    process: Process,
    sampler: SamplerConfig,
    indices: range,
    *,
    folder: Path | None = None,
    **how: Any,
) -> Samples:
    """The samples of these indices, drawn as the fields of `Drawing` say.

    With a folder, each batch is kept there as a shard and drawn only once.
    """
    drawing = Drawing(denoiser, process, sampler, **how)
    if folder is not None:
        fill(folder, drawing, indices)
        return load_samples(folder, indices)
    return draw(drawing, indices)


def draw(drawing: Drawing, indices: range) -> Samples:
    """All of them in memory."""
    _check_indices(indices)
    return _join(drawing.batches(indices), indices)


def fill(folder: Path, drawing: Drawing, indices: range) -> None:
    """Draw what the folder lacks of these samples, one shard per batch: no more than that is ever in memory."""
    _check_indices(indices)
    _claim(folder, drawing.meaning())
    have = [part for part, _ in _shards(folder, indices)]
    for part, piece in drawing.batches(indices, have):
        _write_shard(folder, part, piece)


def _check_indices(indices: range) -> None:
    require(len(indices) > 0 and indices.step == 1 and indices.start >= 0, "indices", indices, "a range of 0 or more")


def share(count: int, worker: int, workers: int) -> range:
    """The indices that one of several workers draws."""
    require(0 <= worker < workers, "worker", worker, f"within 0..{workers - 1}")
    return range(worker * count // workers, (worker + 1) * count // workers)


def labels_of(indices: Iterable[int], classes: int, policy: str, seed: int) -> Tensor | None:
    """(B,) labels: balanced takes classes in turn, random draws each on its own; None without classes."""
    if classes == 0:
        return None
    if policy == "balanced":
        return torch.tensor([index % classes for index in indices])
    draws = [torch.randint(classes, (), generator=generator(CPU, seed, "sample label", index)) for index in indices]
    return torch.stack(draws)


class SampleNoise:
    """Noise (B,C,H,W) of these samples, one generator each, on the CPU so that every device gets the same."""

    def __init__(self, indices: Iterable[int], shape: tuple[int, ...], seed: int, device: torch.device) -> None:
        self.generators = [generator(CPU, seed, "sample noise", index) for index in indices]
        self.shape, self.device = shape, device

    def draw(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=own) for own in self.generators]).to(self.device)

    def __call__(self, step: int) -> Tensor:
        return self.draw()


@dataclass
class _Steps:
    """What happens between the evaluations of the network while one batch is drawn."""

    check: Callable[[], object]
    tell: Tell
    before: int  # samples made before this batch
    count: int  # of this batch
    calls: int  # evaluations until it is made
    made: int = 0  # of those

    def around(self, denoise: Denoise) -> Denoise:
        def watched(x: Tensor, t: float) -> Tensor:
            self.check()
            output = denoise(x, t)
            self.made += 1
            self.tell(self.before + self.count * self.made / self.calls)
            return output

        return watched


@contextmanager
def _evaluating(denoiser: Denoiser) -> Iterator[None]:
    was_training = denoiser.training
    denoiser.eval()
    try:
        yield
    finally:
        denoiser.train(was_training)


def _missing(indices: range, have: Iterable[range], batch_size: int) -> list[range]:
    """What is left to draw, in batches of consecutive samples."""
    covered = {index for part in have for index in part}
    parts: list[range] = []
    for index in indices:
        if index in covered:
            continue
        if parts and parts[-1].stop == index and len(parts[-1]) < batch_size:
            parts[-1] = range(parts[-1].start, index + 1)
        else:
            parts.append(range(index, index + 1))
    return parts


def _join(pieces: Iterable[tuple[range, Samples]], indices: range, folder: Path | None = None) -> Samples:
    """One after another put in its place; all must be there. Many need a folder on a disk with room for them."""
    images: Tensor | None = None
    labels: Tensor | None = None
    parts = []
    for part, piece in pieces:
        if images is None:
            images = _room((len(indices), *piece.images.shape[1:]), folder)
            labels = None if piece.labels is None else torch.empty(len(indices), dtype=torch.int64)
        start, stop = max(part.start, indices.start), min(part.stop, indices.stop)
        here, there = (slice(start - whole.start, stop - whole.start) for whole in (indices, part))
        images[here] = piece.images[there]
        if labels is not None and piece.labels is not None:
            labels[here] = piece.labels[there]
        parts.append(part)
    missing = _missing(indices, parts, len(indices))
    if missing or images is None:
        raise ValueError(f"{folder} lacks samples {missing[0].start}..{missing[0].stop - 1}: sample them first")
    return Samples(images, labels)


def _room(shape: tuple[int, ...], folder: Path | None) -> Tensor:
    """uint8, in memory if they are few, else in a file without a name, which goes with its last user."""
    if folder is None or math.prod(shape) <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # a full disk says so here, and later only by a signal
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape))


# Shards: `000000-000250.npz` holds samples 0 to 249 as they are; `meaning.json` says what they are samples of.


def _claim(folder: Path, meaning: dict[str, Any]) -> None:
    """Make the folder for these samples, or refuse one that holds others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / MEANING
    if not file.exists():
        write_json(file, meaning)
        return
    found = _read_meaning(file)
    if not found:
        raise ValueError(f"{file} is damaged: delete the samples beside it, or name another folder")
    for key, value in meaning.items():
        require(found.get(key) == value, key, value, f"{found.get(key)!r}, as in {file}, or another folder")


def drop_others(folder: Path, meaning: dict[str, Any]) -> None:
    """Delete what the folder holds of other samples. Only one worker may, and before any of them draws."""
    file = folder / MEANING
    if not file.exists():
        return
    found = _read_meaning(file)
    changed = [key for key, value in meaning.items() if found.get(key) != value]
    if not changed:
        return
    log.warning("%s holds samples of other %s: they will be drawn again", folder, " and ".join(changed))
    for path in folder.glob("*.npz"):
        path.unlink()
    file.unlink()  # last: a killed call finds it and goes on


def _read_meaning(file: Path) -> dict[str, Any]:
    """Empty for a damaged one, which then fits no samples."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def weights_digest(network: nn.Module) -> str:
    """sha256 over names and values of everything in the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write_shard(folder: Path, indices: range, piece: Samples) -> None:
    arrays = {"images": piece.images.numpy()}
    if piece.labels is not None:
        arrays["labels"] = piece.labels.numpy()
    path = folder / f"{indices.start:06d}-{indices.stop:06d}.npz"
    for leftover in folder.glob(f".{path.name}.*.tmp"):  # of a killed writer; other workers' may be in use
        leftover.unlink(missing_ok=True)
    _write_npz(path, arrays)


def _shards(folder: Path, indices: range) -> Iterator[tuple[range, Samples]]:
    """The whole shards that reach into these indices."""
    for path in sorted(folder.glob("*.npz")):
        name = re.fullmatch(r"(\d+)-(\d+)", path.stem)
        part = range(int(name[1]), int(name[2])) if name else range(0)
        if max(part.start, indices.start) < min(part.stop, indices.stop):
            piece = _read_shard(path)
            if piece is not None and len(piece.images) == len(part):
                yield part, piece


def _read_shard(path: Path) -> Samples | None:
    """None, with a warning, for a damaged one: it will be drawn again."""
    try:
        arrays = read_npz_file(path)  # a flipped byte fails the archive's checksum
        images, labels = arrays.get("images"), arrays.get("labels")
        if images is None or images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError("it holds no images")
        if labels is not None and (labels.dtype != np.int64 or labels.shape != images.shape[:1]):
            raise ValueError("its labels are not one per image")
    except ValueError as error:
        log.warning("%s is damaged and will be drawn again: %s", path, error)
        return None
    return Samples(torch.from_numpy(images), None if labels is None else torch.from_numpy(labels))


def load_samples(folder: Path, indices: range) -> Samples:
    """Samples that earlier calls, or several workers, left in a folder."""
    return _join(_shards(folder, indices), indices, folder)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_file(path, write)
