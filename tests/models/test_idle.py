"""A field is idle exactly when changing it changes nothing: no output, no label dropped, no optimiser group."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import DenoiserConfig, backbones, build, named_config
from tests.models.conformance import awake, inputs

ALTERNATIVES: dict[str, dict[str, Any]] = {
    "diffussm": {
        "P": 2,
        "M": 4,
        "depth": 4,
        "width": 32,
        "stream": "full",
        "resample": "linear",
        "direction": "forward",
        "join": "sum",
        "skip": "long",
        "mixer": "attention",
        "heads": 2,
        "positions": "none",
        "state": 8,
        "init": "inv",
        "discretisation": "bilinear",
        "ssm_lr_scale": 0.1,
    },
    "dit": {"P": 4, "depth": 2, "width": 32, "heads": 2, "mlp_ratio": 2.0},
    "dis": {
        "P": 4,
        "depth": 3,
        "width": 32,
        "state": 4,
        "conv": 2,
        "expand": 1,
        "skip": "add",
        "condition": "adaln",
        "direction": "forward",
        "drop_path": 0.5,
    },
    "unet": {
        "width": 64,
        "channel_mult": (1, 1),
        "res_blocks": 2,
        "attention_factors": (1, 2),
        "attention": "transformer",
        "attention_order": "new",
        "head_width": 8,
        "resample": "conv",
        "modulation": "add",
        "context_width": 24,
        "norm_groups": 4,
        "dropout": 0.5,
    },
}
CASES: list[tuple[str, dict[str, Any]]] = [
    *(("diffussm", {key: value}) for key, value in (("M", 1), ("stream", "full"), ("mixer", "attention"))),
    *(("diffussm", {key: value}) for key, value in (("direction", "forward"), ("depth", 1), ("classes", 0))),
    *(("dis", {key: value}) for key, value in (("depth", 1), ("condition", "adaln"), ("classes", 0))),
    *(("unet", {key: value}) for key, value in (("attention", "transformer"), ("classes", 0))),
    ("unet", {"attention": "transformer", "classes": 0}),
    ("unet", {"channel_mult": (1, 1), "head_width": 32}),  # one head: nothing to order
    ("unet", {"head_width": 32, "attention_factors": (1, 2)}),  # one head at one width, two at the other
    ("dit", {"classes": 0}),
    *((name, {}) for name in ALTERNATIVES),
]


def behaviour(name: str, config: DenoiserConfig) -> tuple[list[Tensor], list[Any]]:
    """All a config decides: the network in training and in evaluation, what becomes of labels, optimiser groups."""
    model, batch = awake(config, f"{name}-tiny"), inputs(config)
    with torch.no_grad():
        outputs = [model(*batch), model.eval()(*batch)]
    labels = model.drop_labels(torch.zeros(100, dtype=torch.int64), torch.Generator().manual_seed(0))
    groups = [(g.name, g.weight_decay, g.lr_scale, len(g.parameters)) for g in model.parameter_groups()]
    return outputs, [labels.tolist() if config.classes else None, groups]


@pytest.mark.parametrize(("name", "base"), CASES, ids=str)
def test_idle_fields_are_those_that_change_nothing(name: str, base: dict[str, Any]) -> None:
    config = named_config(f"{name}-tiny", **base)
    outputs, rest = behaviour(name, config)
    alternatives = {**ALTERNATIVES[name], "class_dropout": 0.5, "label_std": 0.5}
    tried = {field: value for field, value in alternatives.items() if getattr(config, field) != value}
    nothing: set[str] = set()
    for field, value in tried.items():
        others, other_rest = behaviour(name, replace(config, **{field: value}))
        if rest == other_rest and all(torch.equal(a, b) for a, b in zip(outputs, others, strict=True)):
            nothing.add(field)
    assert nothing == config.idle() & tried.keys()


@pytest.mark.parametrize("name", [*ALTERNATIVES, "patchssm"])
@pytest.mark.parametrize("std", [0.02, 1.0])
def test_label_embeddings_start_at_the_scale_asked_for(name: str, std: float) -> None:
    torch.manual_seed(0)
    model = build(f"{name}-tiny", classes=100, label_std=std)
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    assert [table.std().item() for table in tables] == [pytest.approx(std, rel=0.05)]


def test_every_field_of_every_backbone_is_asked_about() -> None:
    dictated = {field.name for field in fields(DenoiserConfig)}
    for name, alternatives in ALTERNATIVES.items():
        own = {field.name for field in fields(backbones()[name].config)} - dictated
        assert own - {"heads"} <= alternatives.keys() if name == "unet" else own == alternatives.keys()
