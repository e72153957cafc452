"""Encode a data set as latents, once, with any number of workers.

    python -m study.data encode latents/imagenet256 --autoencoder sd-vae-ft-ema data=imagenet data.path=/data/imagenet
    python -m study.data encode latents/imagenet256 ... --workers 8        # eight processes on this machine
    srun --ntasks 64 --gpus-per-task 1 python -m study.data encode ...     # any number, anywhere
    python -m study.data check latents/imagenet256

Every worker is the same command: each takes what nobody has in hand, until nothing is left. Killed at any moment,
called again, by one or by many, it makes the same bytes. Words after the options are of a run's `data` section.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line import command_parser, finish
from study.strict import ConfigError

if TYPE_CHECKING:
    import torch

    from study.data import DataConfig
    from study.latents.autoencoder import Autoencoder

WORKER_VARIABLES = (  # (number, of how many, on this machine), as torchrun, srun and arrays set them
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", ""),
)


def encode_parser() -> argparse.ArgumentParser:
    made = command_parser("data encode", __doc__)
    add = made.add_argument
    add("out", type=Path, metavar="OUT", help="the folder to make, or to complete")
    add("words", nargs="+", metavar="key=value", help="which images: data=imagenet data.path=... data.size=256")
    add("--autoencoder", required=True, help="folder, or hub id such as stabilityai/sd-vae-ft-ema")
    add("--scale", type=float, help="of latents (default: the autoencoder's own, 0.18215 for Stable Diffusion's)")
    add("--dtype", choices=("float32", "float16"), default="float32", help="on disk; float16 rounds the means")
    add("--shard", type=int, default=1024, help="images per file")
    add("--batch", type=int, default=32, help="images encoded at once")
    add("--workers", type=int, default=1, help="processes to start on this machine")
    add("--threads", type=int, default=1, help="of each worker's, for kernels on a CPU")
    add("--device", default="auto", help="auto, cpu or cuda")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """`encode`, without its verb."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = encode_parser().parse_intermixed_args(words)
    return finish(lambda: _worked(given, words), (ValueError,))


def _worked(given: argparse.Namespace, words: list[str]) -> int:
    for name in ("shard", "batch", "workers", "threads"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name} {getattr(given, name)} is not valid: must be 1 or more")
    if given.workers > 1:
        return _start_workers(given.workers, words)
    print(_encode(given))
    return 0


def _start_workers(count: int, arguments: list[str]) -> int:
    """The same command, several times; the first complaint is the answer. None of them outlives this process's end."""
    single = [sys.executable, "-m", "study.latents", "encode", *arguments, "--workers", "1"]
    asked: list[int] = []
    with ExitStack() as stack:
        # An exception out of Popen would lose the worker that it has just begun: until all are known, only listen.
        for kind in (signal.SIGTERM, signal.SIGINT):
            stack.callback(signal.signal, kind, signal.signal(kind, lambda kind, _: asked.append(kind)))
        workers = []
        for number in range(count):
            ranked = {**os.environ, "RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number)}
            heard = None if number == 0 else subprocess.DEVNULL
            workers.append(stack.enter_context(subprocess.Popen(single, env=ranked, stdout=heard)))
            stack.callback(workers[-1].terminate)  # before it is waited for
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, signal.default_int_handler)
        if asked:
            raise KeyboardInterrupt
        codes = [worker.wait() for worker in workers]
    return next((code for code in codes if code), 0)


def who() -> tuple[int, int, int]:
    """This worker's number, of how many, and its number on this machine."""
    for names in WORKER_VARIABLES:
        values = [os.environ.get(name, "") for name in names]
        if values[0].isdecimal() and values[1].isdecimal():
            number, count = int(values[0]), max(int(values[1]), 1)
            return number % count, count, int(values[2]) if values[2].isdecimal() else 0
    return 0, 1, 0


def _encode(given: argparse.Namespace) -> str:

    from study.data import offered
    from study.latents.autoencoder import load_autoencoder
    from study.latents.finish import finish
    from study.latents.folder import LATENT_SPLITS, read_folder

    config = data_config(given.words)
    offer = offered(config)
    if offer.latent_factor != 1 or offer.channels != 3:
        raise ConfigError(f"data={config.name} is not valid: must be images of three channels")
    device = _prepare(given.device, given.threads)
    autoencoder = load_autoencoder(given.autoencoder, given.scale)
    if offer.size[0] % autoencoder.factor:
        raise ConfigError(f"data.size={offer.size[0]} is not valid: must be divisible by {autoencoder.factor}")
    for split in LATENT_SPLITS:
        _encode_split(given, config, split, autoencoder, device)
    finish(given.out, config, autoencoder)
    found = read_folder(given.out)
    size = sum(plan.bytes for plan in (found.train, found.heldout)) / 1e9
    return (
        f"{given.out}: {found.train.count} + {found.heldout.count} latents of {found.pixels} x {found.pixels} images "
        f"and their mirror images, {size:.3g} GB; {found.reference} reference images; digest {found.digest}"
    )


def data_config(words: Sequence[str]) -> DataConfig:
    """The `data` section that the words mean."""
    from study.compose import compose_tree
    from study.data import DataConfig
    from study.strict import from_tree

    other = next((word for word in words if word.partition("=")[0].split(".")[0] != "data"), None)
    if other is not None:
        raise ConfigError(f"{other} is not valid: only data=... and data.<field>=... say which images")
    return from_tree(DataConfig, compose_tree(words)["data"], "data")


def _prepare(name: str, threads: int) -> torch.device:
    """One way of rounding, whoever encodes: no autotuning, no TF32, as many threads everywhere."""
    import torch

    from study.distributed import Ranks
    from study.run import pick_device

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    _, count, local = who()
    return pick_device(name, Ranks(0, count, local) if count > 1 else Ranks())


def _encode_split(
    given: argparse.Namespace, config: DataConfig, split: str, autoencoder: Autoencoder, device: torch.device
) -> None:
    from study.data import load
    from study.latents.encode import encode
    from study.latents.files import EncodingPlan

    source = load(config, split)
    height, width = (side // autoencoder.factor for side in source.shape[1:])
    plan = EncodingPlan(
        data=f"{config.name}/{split}",
        images_sha256=source.sha256,
        count=len(source),
        classes=source.classes,
        size=(height, width),
        channels=autoencoder.channels,
        factor=autoencoder.factor,
        autoencoder=autoencoder.name,
        autoencoder_sha256=autoencoder.digest(),
        scale=autoencoder.scale,
        dtype=given.dtype,
        shard=given.shard,
        batch=given.batch,
    )
    number, count, _ = who()

    def tell(done: int, total: int) -> None:
        print(f"{plan.data}: {done} of {total} shards", file=sys.stderr, flush=True)

    encode(source, autoencoder, plan, given.out / split, device, number, count, tell)
