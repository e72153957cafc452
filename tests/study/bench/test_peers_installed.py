"""Adapters for networks of installed packages: our weights in their layout give our outputs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from study.bench.cell import answer
from study.bench.config import Cell, Network
from study.bench.workload import make_work

FILE = Path(__file__).parents[3] / "benchmarks" / "peers.py"


def peer(function: str, backbone: str, mode: str = "forward") -> Cell:
    return Cell(Network(backbone, (8, 8), f"theirs={FILE}:{function}"), mode, batch=2)


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: pip install {package}")


@pytest.mark.parametrize(
    ("function", "backbone"),
    [
        pytest.param("timm_blocks", "dit-tiny", marks=needs("timm")),
        pytest.param("diffusers_dit", "dit-tiny", marks=needs("diffusers")),
        pytest.param("diffusers_dit", "dit-tiny:learn_sigma=true,channels=3,P=1", marks=needs("diffusers")),
        pytest.param("diffusers_unet", "unet-tiny", marks=needs("diffusers")),
        pytest.param(
            "diffusers_unet", "unet-tiny:attention_factors=[1,2],res_blocks=2,classes=0", marks=needs("diffusers")
        ),
    ],
)
def test_their_outputs_are_ours_and_both_train(function: str, backbone: str) -> None:
    work, facts = make_work(peer(function, backbone))
    assert float(facts["agreement"].split()[2]) < 1e-5
    assert torch.isfinite(work["call"]()).all()  # type: ignore[arg-type]
    step, _ = make_work(peer(function, backbone, "train"))
    for phase in step.values():
        phase()


@pytest.mark.parametrize(
    ("function", "backbone", "words"),
    [
        ("timm_blocks", "unet-tiny", "must be a DiT"),
        ("diffusers_dit", "dit-tiny:classes=0", "classes, class_dropout"),
        ("diffusers_unet", "dit-tiny", "must be a U-Net"),
    ],
)
@needs("timm")
@needs("diffusers")
def test_what_has_no_counterpart_is_refused(function: str, backbone: str, words: str) -> None:
    assert words in answer(lambda: make_work(peer(function, backbone))[1])["refused"]


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert "diffusers" in answer(lambda: make_work(peer("diffusers_dit", "dit-tiny"))[1])["refused"]
