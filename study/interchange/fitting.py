"""From a checkpoint's tensors to a model: every parameter there, none left over, each of the right shape and finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import DenoiserConfig, split_name
from models.dit import DiTConfig
from study.atomic import sha256_of
from study.diffusion import FlowConfig, GaussianConfig
from study.interchange.card import card_of
from study.interchange.layouts import LAYOUTS, Layout, Network, find_network, layout_for
from study.interchange.model_folder import Model, has_wide_head, write_model
from study.interchange.reading import CheckpointError, read_checkpoint
from study.strict import ConfigError, from_tree, nearest, to_tree

SHOWN = 3  # names in the one line that says why; all of them follow it


def import_checkpoint(
    path: Path,
    backbone: str,
    folder: Path,
    fields: Mapping[str, Any] | None = None,
    layout: str | None = None,
    average: bool | None = None,
    licence: str | None = None,
) -> tuple[Model, Network]:
    """Make a model folder of a checkpoint; nothing is written unless all of it fits."""
    config = config_of(backbone, fields or {})
    name = check_layout(config, layout)
    network = find_network(read_checkpoint(path), average)
    model = Model(
        backbone=replace(config, learn_sigma=False) if name == "sit" else config,
        process=process_of(LAYOUTS[name], config),
        sampler=LAYOUTS[name].sampler,
        layout=name,
        licence=licence or LAYOUTS[name].licence,
        origin={"file": path.name, "sha256": sha256_of(path), "network": network.which, "averaged": network.averaged},
    )
    tensors = fitted(model, network.tensors, str(path))
    write_model(folder, model, tensors, card_of(model, sum(value.numel() for value in tensors.values())))
    return model, network


def config_of(backbone: str, fields: Mapping[str, Any]) -> DenoiserConfig:
    """A named size with some of its fields set."""
    family, size = split_name(backbone)
    tree = to_tree(family.sizes[size])
    unknown = next((key for key in fields if key not in tree), None)
    if unknown is not None:
        raise ConfigError(f"{backbone} has no field {unknown}{nearest(unknown, list(tree))}")
    given = {**tree, **fields}
    given["size"] = [given["size"]] * 2 if isinstance(given["size"], int) else given["size"]
    return from_tree(family.config, given, "backbone")


def check_layout(config: DenoiserConfig, layout: str | None) -> str:
    known = layout or layout_for(config)
    if known == "own":
        raise CheckpointError(f"nobody else publishes {type(config).__name__} weights: use a run, or a model folder")
    if known not in LAYOUTS:
        raise CheckpointError(f"layout={known!r} is not valid{nearest(known, list(LAYOUTS))}")
    if known != layout_for(config) and not (known == "sit" and isinstance(config, DiTConfig)):
        raise CheckpointError(f"layout={known!r} does not go with this backbone: must be {layout_for(config)}")
    return known


def process_of(layout: Layout, config: DenoiserConfig) -> GaussianConfig | FlowConfig:
    """The layout's, for a network that may have been trained without a variance of its own."""
    process = layout.process
    if isinstance(process, GaussianConfig) and not config.learn_sigma:
        return replace(process, variance="fixed_small")
    return process


def fitted(model: Model, given: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The parameters in float32 under the reference's names; refused with all that is wrong, one name per line."""
    with torch.device("meta"):
        network = model.network(has_wide_head(model.backbone, given))
    shapes = {network.reference_key(key): tuple(value.shape) for key, value in network.state_dict().items()}
    missing, unexpected = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    known = sorted(shapes.keys() & given.keys())
    misshapen = [
        f"{name}: {tuple(given[name].shape)}, must be {shapes[name]}"
        for name in known
        if tuple(given[name].shape) != shapes[name]
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        raise CheckpointError(_refusal(source, type(network).__name__, faults))
    return {name: finite(given[name], name, source).to(torch.float32) for name in shapes}


def finite(tensor: Tensor, name: str, source: str) -> Tensor:
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{source}: {name} is not valid: must be finite floating-point numbers")
    return tensor


def _refusal(source: str, architecture: str, faults: Mapping[str, Sequence[str]]) -> str:
    """One line that sums up, then every name."""
    counts = [f"{len(names)} {what} ({_some(names)})" for what, names in faults.items() if names]
    names = [f"  {what}: {name}" for what, listed in faults.items() for name in listed]
    return "\n".join([f"{source} is not a {architecture} of this size: {'; '.join(counts)}", *names])


def _some(names: Sequence[str]) -> str:
    short = [name.split(":")[0] for name in names[:SHOWN]]
    return ", ".join(short) + (", ..." if len(names) > SHOWN else "")
