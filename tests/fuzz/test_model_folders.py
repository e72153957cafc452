"""A model folder whose description was changed: it is the network of its weights, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import build
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig
from study.interchange.command import main as interchange
from study.interchange.layouts import layout_for
from study.interchange.model_folder import FACTS, WEIGHTS, Model, load_model, write_model
from tests.fuzz.mutations import as_json, bytes_like, place, scaled, trees_like, works_or_refuses

NETWORKS = {
    "dit": ("dit-tiny", {"size": (4, 4), "width": 16, "depth": 1, "heads": 2}),
    "sit": ("dit-tiny", {"size": (4, 4), "width": 16, "depth": 1, "heads": 2}),
    "own": ("diffussm-tiny", {"size": (4, 4), "width": 16, "depth": 1, "heads": 2}),
    "adm": ("unet-tiny", {"size": (8, 8), "width": 8, "head_width": 8, "norm_groups": 4}),
}


@cache
def folders() -> dict[str, dict[str, bytes]]:
    """A whole one of each layout, as import and export leave them."""
    found = {}
    for layout, (name, fields) in NETWORKS.items():
        known = fields if layout != "own" else {key: value for key, value in fields.items() if key != "heads"}
        network = build(name, **known)
        assert layout in ("sit", layout_for(network.config))
        process = FlowConfig() if layout == "sit" else GaussianConfig()
        metrics = ({"metric": "val_loss", "value": 0.5, "n": 3, "protocol": "val"},)
        model = Model(network.config, process, SamplerConfig(), layout, "none", {"run": "0" * 16}, metrics)
        tensors = model.network(False).state_dict()
        tensors = {model.network(False).reference_key(key): value for key, value in tensors.items()}
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), model, tensors, "card")
            found[layout] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return found


@st.composite
def described(draw: st.DrawFn) -> tuple[str, bytes]:
    layout = draw(st.sampled_from(sorted(NETWORKS)))
    data = folders()[layout][FACTS]
    return layout, draw(st.one_of(bytes_like([data]), trees_like([json.loads(data)]).map(as_json)))


@scaled(30)
@given(described())
def test_descriptions(changed: tuple[str, bytes]) -> None:
    layout, data = changed
    with place({**folders()[layout], FACTS: data}) as folder:
        if works_or_refuses(lambda: load_model(folder), ValueError):
            network, _ = load_model(folder)
            assert not any(value.is_meta for value in network.state_dict().values())


@scaled(10)
@given(bytes_like([b"x"]), st.sampled_from(sorted(NETWORKS)))
def test_weights(data: bytes, layout: str) -> None:
    """Whatever stands in the place of the weights has another checksum."""
    with place({**folders()[layout], WEIGHTS: data}) as folder:
        assert not works_or_refuses(lambda: load_model(folder), ValueError)


@pytest.mark.parametrize("layout", NETWORKS)
def test_what_is_not_changed_is_read(layout: str) -> None:
    with place(folders()[layout]) as folder, contextlib.redirect_stdout(io.StringIO()) as out:
        assert interchange(["show", str(folder)]) == 0
        network, _ = load_model(folder)
        assert sum(value.numel() for value in network.state_dict().values()) > 0
    assert "whole by its checksum" in out.getvalue()
