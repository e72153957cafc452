"""Miniature real data sets of every format, written as their distributors write them."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

SYNSETS = ("n01440764", "n02084071", "n15075141")


def picture(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """Smooth, so that JPEG keeps it, and different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> bytes:
    return encoded(picture(seed, width, height, mode), "JPEG", quality=95)


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def imagenet(folder: Path, each: int = 8, apart: int = 4, synsets: Sequence[str] = SYNSETS) -> Path:
    """train/<synset>/*.JPEG and val/<synset>/*.JPEG"""
    files = {}
    for number, synset in enumerate(synsets):
        train = {f"train/{synset}/{synset}_{i}.JPEG": jpeg(100 * number + i) for i in range(each)}
        val = {f"val/{synset}/ILSVRC2012_val_{number}{i:07d}.JPEG": jpeg(100 * number + 50 + i) for i in range(apart)}
        files |= {**train, **val}
    return write(folder, files)


def flat(folder: Path, count: int = 40, width: int = 24, height: int = 20) -> Path:
    return write(folder, {f"{i:05d}.png": encoded(picture(i, width, height)) for i in range(count)})


def edm_zip(
    file: Path, count: int = 40, side: int = 16, labels: object = ..., method: int = zipfile.ZIP_STORED
) -> Path:
    """As EDM's dataset tool writes them: square images in numbered folders, and dataset.json."""
    names = [f"{i // 10:05d}/img{i:08d}.png" for i in range(count)]
    known = [[name, i % 4] for i, name in enumerate(names)] if labels is ... else labels
    with zipfile.ZipFile(file, "w", method) as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(picture(i, side, side)))
        archive.writestr("dataset.json", json.dumps({"labels": known}))
    return file


def shard(file: Path, members: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def webdataset(
    folder: Path, shards: int = 4, each: int = 10, label: Callable[[int], bytes] = lambda i: b"%d" % (i % 3)
) -> Path:
    for number in range(shards):
        members: dict[str, bytes] = {}
        for i in range(number * each, (number + 1) * each):
            members |= {f"{i:06d}.cls": label(i), f"{i:06d}.jpg": jpeg(i), f"{i:06d}.txt": b"a caption"}
        shard(folder / f"train-{number:06d}.tar", members)
    return folder


def lsun(folder: Path, count: int = 40, name: str = "church_outdoor_train_lmdb") -> Path:
    (folder / name).mkdir(parents=True)
    database = lmdb.open(str(folder / name), map_size=1 << 24)
    with database.begin(write=True) as transaction:
        for i in range(count):
            transaction.put(b"%040x" % (i * 2654435761), encoded(picture(i, 32, 28), "WEBP", lossless=True))
    database.close()
    return folder


def cifar10(folder: Path, each: int = 10, protocol: int = 2) -> Path:
    """Six pickles; the values are those of Python 2's: bytes as keys, lists of whole numbers as labels."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        images = [np.asarray(picture(1000 * number + i, 32, 32)).transpose(2, 0, 1).reshape(-1) for i in range(each)]
        held = {
            b"batch_label": b"training batch 1 of 5",
            b"labels": [(number + i) % 10 for i in range(each)],
            b"data": np.stack(images),
            b"filenames": [b"%d.png" % i for i in range(each)],
        }
        (batches / name).write_bytes(pickle.dumps(held, protocol))
    return folder


def celeba(folder: Path, count: int = 12, partition: bool = True) -> Path:
    names = [f"{i + 1:06d}.jpg" for i in range(count)]
    write(folder / "img_align_celeba", {name: jpeg(i, 178, 218) for i, name in enumerate(names)})
    if partition:
        lines = [f"{name} {0 if i < count // 2 else 1 + i % 2}" for i, name in enumerate(names)]
        (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return folder
