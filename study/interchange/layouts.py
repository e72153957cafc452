"""Which network of a checkpoint is meant, and what its parameters are called there.

| layout | written by | found under |
|---|---|---|
| dit | DiT, fast-DiT | the file itself, or `ema` and `model` of a training checkpoint |
| sit | SiT | the same names as DiT's: it must be asked for |
| dis | DiS | the same places |
| adm | guided-diffusion | the file itself |
| ldm | latent-diffusion, Stable Diffusion | `state_dict`: `model.diffusion_model.`, or flattened under `model_ema.` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models import DenoiserConfig
from models.unet import UNetConfig
from study.config import backbone_name
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig
from study.interchange.reading import CheckpointError, tensors_in

WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")
AVERAGES = ("ema", "model_ema", "ema_state_dict")
PLAIN = ("model", "state_dict", "network", "model_state_dict")
LDM_NETWORK = "model.diffusion_model."
LDM_AVERAGE = "model_ema.diffusion_model"
LDM_LABELS = "cond_stage_model.embedding.weight"


@dataclass(frozen=True)
class Layout:
    """A family of official codes: the process its weights are for, and how it samples by default."""

    name: str
    process: GaussianConfig | FlowConfig
    sampler: SamplerConfig
    licence: str  # where the terms of its published weights are


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("dit", GaussianConfig(), SamplerConfig(), "CC-BY-NC 4.0, see github.com/facebookresearch/DiT"),
        Layout("sit", FlowConfig(), SamplerConfig("heun", "125"), "see github.com/willisma/SiT"),
        Layout("dis", GaussianConfig(), SamplerConfig(), "see github.com/feizc/DiS"),
        Layout(
            "adm",
            GaussianConfig(loss="rescaled_mse"),
            SamplerConfig(clip=True),
            "see github.com/openai/guided-diffusion",
        ),
        Layout(
            "ldm",
            GaussianConfig(schedule="ldm", variance="fixed_small"),
            SamplerConfig("ddim", "250", eta=1.0, guidance_channels="all"),
            "see github.com/CompVis/latent-diffusion",
        ),
    )
}


@dataclass(frozen=True)
class Network:
    """One set of weights out of a checkpoint."""

    tensors: Mapping[str, Tensor]
    which: str  # where it was found
    averaged: bool


def layout_for(config: DenoiserConfig) -> str:
    """The layout that a backbone's published weights have, where its names alone tell."""
    if isinstance(config, UNetConfig):
        return "ldm" if config.attention == "transformer" else "adm"
    name = backbone_name(config)
    return name if name in LAYOUTS else "own"


def find_network(tree: Any, average: bool | None = None) -> Network:
    """The averaged weights if there are any (or as asked by `average`), without wrappers' prefixes."""
    found = [*_nested(tree), *_latent_diffusion(tree)] or _flat(tree)
    wanted = [network for network in found if average is None or network.averaged == average]
    if not wanted:
        have = ", ".join(network.which for network in found) or "no tensors"
        asked = {None: "a network", True: "averaged (EMA) weights", False: "weights that are no average"}[average]
        raise CheckpointError(f"the checkpoint has {have}: {asked} must be in it")
    return max(wanted, key=lambda network: network.averaged)


def _nested(tree: Any) -> list[Network]:
    """Training checkpoints: optimiser, arguments and counters lie beside the weights and are left there."""
    if not isinstance(tree, Mapping):
        return []
    found = []
    for names, averaged in ((AVERAGES, True), (PLAIN, False)):
        for name in names:
            tensors = tensors_in(tree.get(name))
            if tensors and not _is_latent_diffusion(tensors):
                found.append(Network(_unwrapped(tensors), name, averaged))
    return found


def _flat(tree: Any) -> list[Network]:
    tensors = tensors_in(tree)
    return [Network(_unwrapped(tensors), "the file's own tensors", averaged=False)] if tensors else []


def _is_latent_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(LDM_NETWORK) for name in tensors)


def _latent_diffusion(tree: Any) -> list[Network]:
    """A whole pipeline: network, its average with the dots taken out of its names, autoencoder, label embedding."""
    inner = tree.get("state_dict") if isinstance(tree, Mapping) else None
    tensors = tensors_in(inner if isinstance(inner, Mapping) else tree)
    plain = {name.removeprefix(LDM_NETWORK): value for name, value in tensors.items() if name.startswith(LDM_NETWORK)}
    if not plain:
        return []
    labels = {"label_context.weight": tensors[LDM_LABELS]} if LDM_LABELS in tensors else {}
    found = [Network({**plain, **labels}, LDM_NETWORK.rstrip("."), averaged=False)]
    flattened = {name: LDM_AVERAGE + name.replace(".", "") for name in plain}
    if any(name in tensors for name in flattened.values()):
        kept = {name: tensors[flat] for name, flat in flattened.items() if flat in tensors}
        found.append(Network({**kept, **labels}, "model_ema", averaged=True))
    return found


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DistributedDataParallel, torch.compile and Lightning put before every name."""
    for wrapper in [name for name in WRAPPERS for _ in WRAPPERS]:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors
