"""Checkpoint files as the official codes write them, of the parity arrays' weights."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity_arrays import load_parity

FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dit_p2": (
        "dit-tiny",
        {"size": 8, "channels": 4, "P": 2, "width": 48, "heads": 4, "learn_sigma": True, "label_std": 0.02},
    ),
    "dis_cond_p2": ("dis-tiny", {"size": 8, "channels": 4, "width": 32, "state": 16, "learn_sigma": True}),
    "dis_uncond_p4": (
        "dis-tiny",
        {"size": 16, "channels": 3, "classes": 0, "P": 4, "depth": 2, "width": 24, "state": 16, "learn_sigma": True},
    ),
    "adm_unet_a": (
        "unet-tiny",
        {"size": 16, "channels": 3, "class_dropout": 0.0, "norm_groups": 32, "learn_sigma": True},
    ),
    "adm_unet_b": (
        "unet-tiny",
        {
            "size": 8,
            "channels": 4,
            "classes": 0,
            "class_dropout": 0.0,
            "norm_groups": 32,
            "channel_mult": [1, 1],
            "attention_factors": [1],
            "attention_order": "new",
            "heads": 4,
            "head_width": None,
            "resample": "conv",
            "modulation": "add",
        },
    ),
}
"""The named size, and what is to be set, for each of the reference constructors' arguments."""

LDM = {
    "attention": "transformer",
    "resample": "conv",
    "modulation": "add",
    "heads": 2,
    "head_width": None,
    "context_width": 24,
    "norm_groups": 32,
}
"""Fields that make `unet-tiny` a small latent-diffusion network."""


def words(fields: Mapping[str, Any]) -> list[str]:
    """For --set."""
    return [f"{key}={'null' if value is None else value}" for key, value in fields.items()]


def save(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def training_checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the training scripts of DiT, fast-DiT, SiT and DiS save; here the last weights are the average plus one."""
    last = {name: value + 1 for name, value in weights.items()}
    moments = {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3)}}
    options = Namespace(model="DiT-XL/2", image_size=256, results_dir=Path("results"))
    return {
        "model": last,
        "ema": dict(weights),
        "opt": {"state": moments, "param_groups": [{"lr": 1e-4}]},
        "args": options,
    }


def pipeline_checkpoint(weights: Mapping[str, Tensor], labels: Tensor) -> dict[str, Any]:
    """What latent diffusion saves: network, average without dots, autoencoder, label embedding, Lightning's records."""
    network = {f"model.diffusion_model.{name}": value + 1 for name, value in weights.items()}
    average = {"model_ema.diffusion_model" + name.replace(".", ""): value for name, value in weights.items()}
    state = {
        **network,
        **average,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        "betas": torch.ones(10),
        "first_stage_model.decoder.conv_in.weight": torch.ones(4, 4, 3, 3),
        "cond_stage_model.embedding.weight": labels,
    }
    return {"state_dict": state, "epoch": 3, "global_step": 7, "optimizer_states": [{"state": {}}], "callbacks": {}}


def parity_weights(name: str) -> dict[str, Tensor]:
    return load_parity(name).params
