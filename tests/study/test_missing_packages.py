"""Without what not everybody has: one line that says what is lost and how to get it, before anything is begun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import analysis.notebooks
from models import build
from study.bench.peers import load_peer
from study.data.databases import opened
from study.latents.autoencoder import load_autoencoder
from study.launch.slurm_cluster import check_installed
from study.run import pick_device
from study.score.inception_weights import FILE_NAME, InceptionWeights
from study.score.scoring import check_device
from study.search.storage import check_reachable

ROOT = Path(__file__).parents[2]


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if it had never been installed."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], object], str, str]] = {
    "diffusers": (lambda: load_autoencoder("vae"), "latents extra", "[latents]"),
    "lmdb": (lambda: opened("/nowhere"), "reading LMDB", "[lmdb]"),
    "psycopg": (lambda: check_reachable("postgresql+psycopg://h/d"), "search.storage", "[postgresql]"),
    "timm": (
        lambda: load_peer(f"t={ROOT / 'benchmarks' / 'peers.py'}:timm_blocks", build("dit-tiny")),
        "peer=",
        "[peers]",
    ),
    "nbclient": (analysis.notebooks.check_installed, "notebooks are run with", "[notebooks]"),
}


@pytest.mark.parametrize("package", CASES)
def test_a_package_that_is_not_there(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, lost, get = CASES[package]
    hide(monkeypatch, package)
    with pytest.raises(ValueError, match=r"\S") as refusal:
        ask()
    told = str(refusal.value)
    assert lost in told
    assert f"pip install 'diffusion-backbone-study{get}'" in told
    assert "\n" not in told


def test_every_extra_that_is_named_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for _, _, get in CASES.values():
        assert f"\n{get.strip('[]')} = [" in text


def test_the_notebooks_command_without_jupyter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "nbformat")
    assert analysis.notebooks.main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: notebooks are run with nbformat, which is not installed")
    assert told.count("\n") == 1


def test_inception_weights_say_where_they_are_and_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    told = InceptionWeights().missing()
    assert told is not None
    assert FILE_NAME in told
    assert str(tmp_path) in told
    assert "https://" in told
    assert "\n" not in told


@pytest.mark.parametrize("ask", [pick_device, check_device], ids=["run", "score"])
def test_no_gpu(ask: Callable[[str], object]) -> None:
    """A number that no machine has: the test also holds where there are GPUs."""
    with pytest.raises(ValueError, match="device='cuda:99' is not usable here") as refusal:
        ask("cuda:99")
    assert "\n" not in str(refusal.value)


def test_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no sbatch on this machine; launcher=local runs here"):
        check_installed()
