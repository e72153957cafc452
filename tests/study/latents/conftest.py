"""One autoencoder and one set of latents for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.latents.command import main
from tests.study.latents.tiny import save_autoencoder, words

pytest.importorskip("diffusers")


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="session")
def latents(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read, never written to."""
    out = tmp_path_factory.mktemp("latents") / "glyphs"
    assert main(words(out, autoencoder)) == 0
    return out
