"""A KL autoencoder small enough for a test, and latents made by it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

NAME_A_PLACE = ("plan.json", "config.json")
WEIGHTS = "diffusion_pytorch_model.safetensors"  # in an autoencoder's folder
BLOCKS = 4  # of which three halve the sides: factor 8, as Stable Diffusion's


def save_autoencoder(folder: Path, seed: int = 0) -> Path:
    """Randomly initialised, and then scaled so that its posteriors are neither flat nor sharp."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * BLOCKS,
        up_block_types=("UpDecoderBlock2D",) * BLOCKS,
        block_out_channels=(8,) * BLOCKS,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )
    network.save_pretrained(str(folder))
    return folder


def words(out: Path, autoencoder: Path, train: int = 40, heldout: int = 10, reference: int = 12) -> list[str]:
    """Arguments of `encode`, on textured glyphs of 64 pixels, in shards of 4 images."""
    counts = [f"data.count={train}", f"data.heldout={heldout}", f"data.reference={reference}"]
    small = ["--shard", "4", "--batch", "4", "--device", "cpu"]
    return [str(out), "--autoencoder", str(autoencoder), "data=glyphtex64", *counts, *small]


def encoding(arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """`encode` in a process of its own."""
    command = [sys.executable, "-m", "study.latents", "encode", *arguments]
    everything = {**os.environ, **environment}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=everything)


def contents(folder: Path) -> dict[str, str]:
    """sha256 by name of every file, but for those that name where the autoencoder lay."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in NAME_A_PLACE]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def torchrun(processes: int, *words: str) -> None:
    """A module in several processes, which must all end well."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words], check=True, capture_output=True, timeout=300, env=environment)
