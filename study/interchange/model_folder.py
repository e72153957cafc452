"""A network outside of its run: weights in safetensors, what they are in JSON, and a card for people.

Import makes one of an official checkpoint, export of a run; both can be sampled, and read back bit for bit.
Parameters have the reference code's names, so the file also loads where the architecture comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import Denoiser, DenoiserConfig, backbones
from models.denoiser import require
from models.dit import DiTConfig
from study.atomic import sha256_of, write_file, write_json, write_text
from study.config import PROCESSES, backbone_name, process_name
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig
from study.interchange.reading import CheckpointError
from study.interchange.sit import SiT
from study.strict import ConfigError, from_tree, to_tree
from study.strict_json import parse_json

FORMAT = 1
WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"


@dataclass(frozen=True)
class Model:
    """What a folder holds, but for the numbers."""

    backbone: DenoiserConfig
    process: GaussianConfig | FlowConfig
    sampler: SamplerConfig  # to sample with, unless told otherwise
    layout: str  # whose names the parameters have; `sit` also says how time runs
    licence: str
    origin: Mapping[str, Any] = field(default_factory=dict)  # a file and its checksum, or a run with its config
    metrics: tuple[Mapping[str, Any], ...] = ()

    def network(self, wide_head: bool = True) -> Denoiser:
        """Freshly initialised, on the current default device."""
        if self.layout == "sit":
            assert isinstance(self.backbone, DiTConfig)
            return SiT(self.backbone, wide_head)
        return backbones()[backbone_name(self.backbone)].denoiser(self.backbone)


def write_model(folder: Path, model: Model, tensors: Mapping[str, Tensor], card: str) -> None:
    """The facts last: a folder without them is not a model."""
    if (folder / FACTS).exists():
        raise CheckpointError(f"{folder} holds a model already: name another folder, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    apart = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_file(folder / WEIGHTS, lambda temporary: save_file(apart, temporary, {"format": "pt"}))
    write_text(folder / CARD, card)
    write_json(folder / FACTS, _as_tree(model, sha256_of(folder / WEIGHTS)))


def _as_tree(model: Model, sha256: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "backbone": {"name": backbone_name(model.backbone), **to_tree(model.backbone)},
        "process": {"name": process_name(model.process), **to_tree(model.process)},
        "sampler": to_tree(model.sampler),
        "layout": model.layout,
        "licence": model.licence,
        "sha256": sha256,
        "origin": dict(model.origin),
        "metrics": [dict(row) for row in model.metrics],
    }


def read_facts(folder: Path) -> tuple[Model, str]:
    """What a folder says it holds, and the checksum of its weights."""
    try:
        tree = parse_json((folder / FACTS).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{folder} holds no model: {FACTS} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / FACTS} is damaged: {error}") from error
    try:
        return _from_tree(tree), str(tree["sha256"])
    except (ConfigError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / FACTS} does not describe a model: {error}") from error


def _from_tree(tree: Mapping[str, Any]) -> Model:
    if tree["format"] != FORMAT:
        raise ConfigError(f"format={tree['format']!r} is not valid: must be {FORMAT}")
    backbone, process = dict(tree["backbone"]), dict(tree["process"])
    model = Model(
        backbone=from_tree(backbones()[backbone.pop("name")].config, backbone, "backbone"),
        process=from_tree(PROCESSES[process.pop("name")], process, "process"),
        sampler=from_tree(SamplerConfig, tree["sampler"], "sampler"),
        layout=str(tree["layout"]),
        licence=str(tree["licence"]),
        origin=tree["origin"],
        metrics=tuple(tree["metrics"]),
    )
    if not isinstance(model.origin, Mapping) or not all(isinstance(row, Mapping) for row in model.metrics):
        raise ConfigError("origin and metrics must be mappings")
    if model.layout == "sit" and not isinstance(model.backbone, DiTConfig):
        raise ConfigError(f"layout='sit' does not go with backbone {tree['backbone']['name']}")
    return model


def load_model(folder: Path) -> tuple[Denoiser, Model]:
    """The network with its weights, on the CPU; a folder whose bytes changed is refused."""
    model, sha256 = read_facts(folder)
    weights = folder / WEIGHTS
    try:
        if sha256_of(weights) != sha256:
            raise CheckpointError(f"{weights} is damaged: its checksum is not the one in {FACTS}")
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights} cannot be read: {error}") from error
    try:
        check_size(model, tensors)
    except Exception as error:  # of impossible sizes torch makes half a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder / FACTS} does not describe the weights beside it: {reason}") from error
    network = model.network(has_wide_head(model.backbone, tensors))
    network.load_reference_state_dict(tensors)
    return network.eval(), model


def check_size(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Before memory is taken for a network, or days to build it: whether it has as many numbers as there are."""
    numbers = sum(value.numel() for value in tensors.values())
    most = {"depth": len(tensors), "res_blocks": len(tensors)}
    for name, value in to_tree(model.backbone).items():
        largest = max(
            (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int)), default=0
        )
        require(largest <= most.get(name, numbers), name, value, f"within the {numbers:,} numbers there are")
    with torch.device("meta"):
        network = model.network(has_wide_head(model.backbone, tensors))
    described = sum(value.numel() for value in network.state_dict().values())
    require(described == numbers, "numbers of the network", described, f"{numbers}, as many as there are")


def has_wide_head(config: DenoiserConfig, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the last layer has outputs for a variance beside those for the image."""
    bias = tensors.get("final_layer.linear.bias")
    P = getattr(config, "P", 1)
    return bias is not None and len(bias) == 2 * config.channels * P * P
