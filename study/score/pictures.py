"""Images to be scored, from wherever they are: npz, a folder of PNGs, a run's samples, an embedded data set."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.denoiser import require, require_choice
from study.config import RunConfig, run_id, to_dict
from study.data import SPLITS, DataConfig, ImageSet, Split, datasets, load, offered
from study.npz import read_npz_file
from study.run_directory import load_config
from study.sample import load_samples
from study.score.frechet import Moments

BIT_DEPTH = 24  # its byte in a PNG: after signature, the header's length and type, width and height
OTHER_FORMATS = {".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
ADM_STATISTICS = {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclass(frozen=True)
class Pictures:
    """uint8 images, with labels if known, and with published statistics of a larger set if the file has them."""

    name: str
    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor | None = None  # int64 (N,)
    source: tuple[DataConfig, Split] | None = None  # the embedded images that these are
    data: str | None = None  # the embedded data set they are of, or are to look like
    statistics: Mapping[str, Moments] = field(default_factory=dict)  # {Inception layer: moments}
    sampling: Mapping[str, object] = field(default_factory=dict)  # how they were drawn, if from a model; not the seed

    def __post_init__(self) -> None:
        images = self.images
        require(images.dtype == torch.uint8, f"{self.name}.images", described(images), "uint8 in 0..255")
        valid = images.ndim == 4 and images.shape[1] in (1, 3) and images.numel() > 0
        require(valid, f"{self.name}.images.shape", tuple(images.shape), "N x C x H x W with C = 1 or 3, not empty")
        labelled = self.labels is None or self.labels.shape == images.shape[:1]
        require(labelled, f"{self.name}.labels", self.labels is not None and self.labels.shape, "one per image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        """Of the pixels and their arrangement, and of the statistics if there are any."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        for layer, known in sorted(self.statistics.items()):
            digest.update(layer.encode() + known.mean.tobytes() + np.ascontiguousarray(known.full).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> Pictures:
        labels = None if self.labels is None else self.labels[start:stop]
        return replace(self, images=self.images[start:stop], labels=labels)


def read(source: str, results: str = "results", count: int | None = None) -> Pictures:
    """An npz file, a folder of PNGs or of sample shards, a run id, or `<data set>/<split>` (`reference` if left out).

    `count` is how many a data set is asked for; everything else is read whole.
    """
    path = Path(source)
    if path.is_file():
        require(path.suffix == ".npz", "source", source, "an .npz file, a folder of PNGs, a run id or a data set")
        return read_npz(path)
    if path.is_dir():
        return read_folder(path)
    run = Path(results) / "runs" / source
    if run.is_dir():
        return read_run(run)
    name, _, split = source.partition("/")
    known = name in datasets()
    require(known, "source", source, f"a file, a folder, a run under {results}/runs, or one of {sorted(datasets())}")
    return read_data(name, split or "reference", count)


def read_npz(path: Path) -> Pictures:
    """Ours (`images` N x C x H x W, `labels`) or ADM's (`arr_0` N x H x W x 3, `arr_1`, statistics)."""
    arrays = read_npz_file(path)
    layout = "images" if "images" in arrays else "arr_0"
    require(layout in arrays, f"{path}: arrays", sorted(arrays), "images (N x C x H x W) or arr_0 (N x H x W x C)")
    images = as_tensor(arrays[layout], f"{path}: {layout}")
    if layout == "arr_0" and images.ndim == 4:
        images = images.movedim(-1, 1)
    labels = read_labels(arrays.get("labels" if layout == "images" else "arr_1"), str(path))
    statistics = {
        layer: published(arrays[mean], arrays[covariance], f"{path}: {mean}")
        for layer, (mean, covariance) in ADM_STATISTICS.items()
        if mean in arrays and covariance in arrays
    }
    return Pictures(str(path), images.contiguous(), labels, statistics=statistics)


def as_tensor(array: np.ndarray, where: str) -> Tensor:
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ValueError(f"{where} is an array of {array.dtype}: must be uint8") from error


def read_labels(array: np.ndarray | None, where: str) -> Tensor | None:
    """One whole number per image."""
    if array is None:
        return None
    whole = array.ndim == 1 and array.dtype.kind in "iu"
    require(whole, f"{where}: labels", f"{array.dtype} {array.shape}", "one integer per image")
    return torch.from_numpy(array.astype(np.int64))


def described(images: Tensor) -> str:
    """The type, and the range where it says what went wrong."""
    if not images.is_floating_point() or not images.numel():
        return str(images.dtype)
    return f"{images.dtype} in [{float(images.min()):g}, {float(images.max()):g}]"


def published(mean: np.ndarray, covariance: np.ndarray, where: str) -> Moments:
    """Statistics as ADM's reference batches hold them; of how many images, the file does not say."""
    square = mean.ndim == 1 and covariance.shape == (len(mean), len(mean))
    require(square, where, (mean.shape, covariance.shape), "mean (d,) and covariance (d, d)")
    finite = bool(np.isfinite(mean).all() and np.isfinite(covariance).all())
    require(finite, where, "NaN or infinity", "finite statistics")
    return Moments(mean.astype(np.float64), 0, full=covariance.astype(np.float64))


def read_folder(folder: Path) -> Pictures:
    """Every PNG below it, in the order of their names; or the shards a run left."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".png")
    if not files and (shards := sorted(folder.glob("*-*.npz"))):
        return join(str(folder), [read_npz(shard) for shard in shards])
    require(bool(files), "folder", str(folder), "a folder with .png files")
    other = next((file for file in sorted(folder.rglob("*")) if file.suffix.lower() in OTHER_FORMATS), None)
    require(other is None, "folder", str(other), "PNG throughout: other formats would be left out, or lose detail")
    images = [read_png(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"{file} is {size_of(image)} but {files[0].name} is {size_of(images[0])}: must be one size"
            )
    return Pictures(str(folder), torch.stack(images))


def read_png(file: Path) -> Tensor:
    """uint8 (1 or 3, H, W); transparency, a palette or 16 bits are refused rather than guessed at."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            require(image.mode in ("L", "RGB"), f"{file}: mode", image.mode, "8-bit grey (L) or RGB")
            require("transparency" not in image.info, f"{file}: mode", "transparency", "8-bit grey (L) or RGB")
            depth = file.read_bytes()[BIT_DEPTH]  # opened as RGB, 16 bits would be cut to 8 in silence
            require(depth <= 8, f"{file}: bits", depth, "8-bit grey (L) or RGB")
            pixels = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a whole PNG: {str(error).splitlines()[0]}") from error
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def read_run(run: Path) -> Pictures:
    """The samples a run kept, all that it was to draw, with the labels asked of the model and how they were drawn."""
    config = load_config(run / "config.yaml")
    samples = run / "samples"
    require(samples.is_dir(), "run", run.name, "a run that kept its samples (log.save_samples=true)")
    kept = load_samples(samples, range(config.sample.count))
    return of_run(config, kept.images, kept.labels)


def of_run(config: RunConfig, images: Tensor, labels: Tensor | None) -> Pictures:
    """A run's samples, on disk or not yet."""
    return Pictures(run_id(config), images, labels, data=config.data.name, sampling=sampling_of(config))


def reference_of_run(run: Path) -> Pictures:
    """The reference split of the data a run was trained on."""
    config = load_config(run / "config.yaml").data
    return of_data(config, "reference")


def sampling_of(config: RunConfig) -> dict[str, object]:
    """What of a run's sampling makes its scores comparable with another's; what was trained is not part of it."""
    sampler = {key: value for key, value in to_dict(config)["sample"].items() if key not in ("count", "seed")}
    return {"sample": sampler, "ema": config.train.ema[0]}


def of_data(config: DataConfig, split: Split) -> Pictures:
    images = load(config, split).ready()
    if not isinstance(images, ImageSet):
        raise ValueError(f"{config.name}/{split} has no pixels: scores look at images")
    labels = images.labels if images.classes else None
    return Pictures(f"{config.name}/{split}", images.images, labels, (config, split), config.name)


def held_out_from(reference: Pictures, n: int) -> Pictures | None:
    """As many real images that the reference does not hold, or all there are; None if none are known as pixels."""
    if reference.source is None:
        return None
    config, split = reference.source
    if offered(config).latent_factor > 1:  # what a latent set holds out are latents
        return None
    other: Split = "heldout" if split != "heldout" else "reference"
    limits = offered(config).limits
    most = n if limits is None else min(n, limits[SPLITS.index(other)])
    asked = replace(config, heldout=most) if other == "heldout" else replace(config, reference=most)
    return of_data(asked, other)


def read_data(name: str, split: str, count: int | None) -> Pictures:
    require_choice("split", split, SPLITS)
    asked: dict[str, Any] = {} if count is None else {"count" if split == "train" else split: count}
    return of_data(DataConfig(name, **asked), cast(Split, split))


def join(name: str, parts: list[Pictures]) -> Pictures:
    for part in parts:
        same = part.images.shape[1:] == parts[0].images.shape[1:]
        require(same, part.name, size_of(part.images), f"{size_of(parts[0].images)}, as {parts[0].name}")
    labels = [part.labels for part in parts if part.labels is not None]
    whole = torch.cat(labels) if len(labels) == len(parts) else None
    return Pictures(name, torch.cat([part.images for part in parts]), whole)


def size_of(images: Tensor) -> str:
    return " x ".join(str(side) for side in images.shape[-3:])
