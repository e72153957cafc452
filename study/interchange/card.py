"""The model card: what somebody who finds only this folder has to know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from study.config import backbone_name
from study.strict import to_tree

if TYPE_CHECKING:
    from study.interchange.model_folder import Model

LOADING = """\
    from pathlib import Path
    from study.interchange.model_folder import load_model

    denoiser, model = load_model(Path("."))  # denoiser(x, t, y): t from 0 (clean) to 1000 (noise)

or, to draw samples and score them:

    python -m study.interchange sample FOLDER --out samples.npz --count 50000
    python -m study.score samples.npz REFERENCE.npz --metrics fid sfid is precision recall

`model.safetensors` alone holds every parameter in float32 under the names of the {layout} code;
`model.json` holds the backbone's fields, the process, and the checksum of the weights.
"""


def card_of(model: Model, parameters: int) -> str:
    """Markdown, with the licence on top where model hubs look for it."""
    name = backbone_name(model.backbone)
    macs = model.backbone.macs().total / 1e9
    size = f"{parameters / 1e6:.2f}M parameters, {macs:.4g} GMACs per image and evaluation"
    parts = [
        f"---\nlicense: other\nlicense_name: {yaml.safe_dump(model.licence).splitlines()[0]}\n"
        "library_name: diffusion-backbone-study\n---",
        f"# {name} for {_what(model)}",
        f"{size}. Licence: {model.licence}.",
        "## Where it comes from\n\n" + _origin(model.origin),
        "## Scores\n\n" + _scores(model.metrics),
        "## How to load it\n\n" + LOADING.format(layout=model.layout if model.layout != "own" else "study's own"),
        "## Configuration\n\n" + _yaml({"backbone": {"name": name, **to_tree(model.backbone)}}),
    ]
    config = model.origin.get("config")
    if config:
        parts.append("The whole run:\n\n" + _yaml(config))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _what(model: Model) -> str:
    height, width = (side * model.backbone.latent_factor for side in model.backbone.size)
    kind = "latents" if model.backbone.latent_factor > 1 else "pixels"
    labels = f"{model.backbone.classes} classes" if model.backbone.classes else "unconditional"
    return f"{height} x {width} images ({kind}, {labels})"


def _origin(origin: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in origin.items() if key != "config"}
    return "\n".join(f"- {key}: {value}" for key, value in plain.items())


def _scores(metrics: Iterable[Mapping[str, Any]]) -> str:
    lines = [f"| {row['metric']} | {row['value']:.6g} | {row['n']} | {row['protocol']} |" for row in metrics]
    if not lines:
        return "None are recorded with these weights."
    return "\n".join(["| metric | value | n | protocol |", "|---|---|---|---|", *lines])


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(tree), sort_keys=False)
    return "\n".join(f"    {line}" for line in text.splitlines())
