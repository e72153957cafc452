"""How fast images come off the disk, by threads and by processes, and how long a training step waits for them.

    python benchmarks/loader.py                                                  made-up ImageNet-like JPEGs
    python benchmarks/loader.py --data imagenet --path /data/imagenet            your own
    [--size 256] [--images 512] [--batch 32] [--workers 1 2 4] [--step-ms 200]

`plain` is a loop over Pillow in this process: open, crop, to floats. `threads` is what training uses; `processes` is
torch's DataLoader over the same decoding, which is what most loaders are. The last lines let a step of --step-ms go by
between batches, as a GPU's would, and tell which share of the time was spent waiting for images.
Files come from the page cache: a disk slower than that adds its own time. A busy machine disturbs all but the first
line, which is time on a core.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from study.data import DataConfig, load, to_float
from study.data.ahead import THREADS_VARIABLE
from study.data.decode import decode, opened
from study.data.streamed import StreamedSet
from study.draws import AHEAD

WIDTH, HEIGHT, QUALITY = 500, 375, 90  # of a typical image of ImageNet


def make_jpegs(folder: Path, count: int) -> None:
    """Crops of two photographs, so that they take as long to decode as photographs do."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for number in range(count):
        photo = photos[number % 2]
        top, left = rng.integers(photo.shape[0] - HEIGHT + 1), rng.integers(photo.shape[1] - WIDTH + 1)
        crop = Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH])
        crop.save(folder / f"{number:05d}.jpg", quality=QUALITY)


class Decoded(Dataset[Tensor]):
    """The same images for DataLoader's processes."""

    def __init__(self, source: StreamedSet) -> None:
        self.listing, self.numbers, self.crop = source.listing, source.numbers, source.crop

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        number = int(self.numbers[index])
        return torch.from_numpy(decode(self.listing.read(number), self.crop, self.listing.full_name(number)).copy())


def plain(source: StreamedSet, batches: list[Tensor]) -> Iterator[Tensor]:
    images = Decoded(source)
    for batch in batches:
        yield to_float(torch.stack([images[int(index)] for index in batch]))


def threads(source: StreamedSet, batches: list[Tensor], workers: int) -> Iterator[Tensor]:
    os.environ[THREADS_VARIABLE] = str(workers)
    source = source.to("cpu")  # with threads of its own
    for turn, batch in enumerate(batches):
        source.expect(batches[turn : turn + AHEAD + 1])
        yield source.batch(batch)


def processes(source: StreamedSet, batches: list[Tensor], workers: int) -> Iterator[Tensor]:
    loader = DataLoader(
        Decoded(source), batch_sampler=[batch.tolist() for batch in batches], num_workers=workers, prefetch_factor=AHEAD
    )
    for images in loader:
        yield to_float(images)


def speed(stream: Callable[[], Iterator[Tensor]]) -> float:
    """Images per second from the first batch on, so that starting threads or processes does not count."""
    start, images = 0.0, 0
    for batch in stream():
        if start:
            images += len(batch)
        else:
            start = time.perf_counter()
    return images / (time.perf_counter() - start)


def cpu_ms(source: StreamedSet, count: int) -> tuple[float, float]:
    """Of one image: all that decoding takes, and what of it is Pillow's decoding and resizing, without Python's lock.

    Time of this thread on a core, which a busy machine does not disturb; the lock bounds how many threads can help.
    """
    whole = free = 0.0
    for number in source.numbers[:count]:
        content, began = source.listing.read(int(number)), time.thread_time()
        decode(content, source.crop, "")
        whole += time.thread_time() - began
        image, began = opened(content), time.thread_time()
        image.load()
        source.crop(image)
        free += time.thread_time() - began
    return 1000 * whole / count, 1000 * free / count


def waited(stream: Iterator[Tensor], step: float) -> float:
    """Share of the time spent waiting for images, when each batch is followed by a step of that many seconds."""
    next(stream)
    began, waiting = time.perf_counter(), 0.0
    while True:
        time.sleep(step)
        asked = time.perf_counter()
        if next(stream, None) is None:
            return waiting / (time.perf_counter() - began)
        waiting += time.perf_counter() - asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="folder")
    parser.add_argument("--path", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--step-ms", type=float, default=200.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = given.path or Path(folder)
        if given.path is None:
            make_jpegs(path, given.images + 2)
        measure(given, DataConfig(given.data, path=str(path), size=given.size, heldout=1, reference=1))


def measure(given: argparse.Namespace, config: DataConfig) -> None:
    source = load(config, "train")
    assert isinstance(source, StreamedSet), f"{config.name} is kept in memory: there is nothing to measure"
    batches = list(torch.arange(min(given.images, len(source))).split(given.batch))
    print(f"{len(os.sched_getaffinity(0))} cores, {config.name} at {config.size} px, batches of {given.batch}")
    whole, free = cpu_ms(source, min(given.images, len(source)))
    print(f"an image takes {whole:.2f} ms of a core, {free / whole:.0%} of it without Python's lock")
    print(f"{'plain':<14}{speed(lambda: plain(source, batches)):8.0f} images/s")
    for workers in given.workers:
        for name, stream in (("threads", threads), ("processes", processes)):
            found = speed(lambda stream=stream, workers=workers: stream(source, batches, workers))  # type: ignore[misc]
            print(f"{f'{workers} {name}':<14}{found:8.0f} images/s")
    for workers in given.workers:
        share = waited(threads(source, batches, workers), given.step_ms / 1000)
        print(f"a step of {given.step_ms:g} ms with {workers} threads waits {share:.1%} of the time")


if __name__ == "__main__":
    main()
