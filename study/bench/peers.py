"""Foreign modules beside ours: `--peer name=path:callable`.

The callable is given our network, with its config and weights, and returns a module that is called like it:

    def make(ours: Denoiser) -> nn.Module:   # module(x (B,C,H,W), t (B,), y (B,) | None) -> (B, C or 2C, H, W)

Its outputs must agree with ours before it is timed. A module that cannot take our weights says so with an
attribute `shares_weights = False`; then only the shape of its output is held to ours, and the row says that.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import Denoiser
from models.denoiser import require

TOLERANCE = 1e-3  # largest difference, relative to the largest output


def check_peer(text: str) -> None:
    """Refuse what cannot be a peer before any process is started."""
    name, equals, target = text.partition("=")
    path, colon, function = target.rpartition(":")
    require(bool(name and equals and path and colon and function), "peer", text, "name=path:callable")
    if path.endswith(".py"):
        require(Path(path).is_file(), "peer", text, "name=path:callable of a file that exists")


def load_peer(text: str, ours: Denoiser) -> nn.Module:
    """Import the callable, from a file or an installed package, and let it build its module."""
    path, _, function = text.partition("=")[2].rpartition(":")
    module = _from_file(Path(path)) if path.endswith(".py") else _installed(path, text)
    found = getattr(module, function, None)
    require(callable(found), "peer", text, f"name=path:callable, and {path} has no callable {function}")
    assert found is not None
    try:
        built = found(ours)
    except ImportError as error:
        get = "pip install 'diffusion-backbone-study[peers]', or leave the peer out"
        raise ValueError(f"peer={text!r} needs a package that is not installed ({error}): {get}") from error
    require(isinstance(built, nn.Module), "peer", text, f"a callable that returns a torch module, not {type(built)}")
    return built


def _installed(name: str, text: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"peer={text!r} is not valid: must be name=path:callable, and {name}: {error}") from error


def _from_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))  # a checkout's own imports
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def agreement(name: str, ours: nn.Module, theirs: nn.Module, given: tuple[Tensor, Tensor, Tensor | None]) -> str:
    """How far outputs on the same inputs are apart; refused where weights are shared and outputs are not."""
    mine, other = ours.eval()(*given), theirs.eval()(*given)
    shapes = tuple(mine.shape) == tuple(other.shape)
    require(shapes, f"peer {name} output.shape", tuple(other.shape), f"that of ours, {tuple(mine.shape)}")
    if not getattr(theirs, "shares_weights", True):
        return "not checked: weights of its own"
    apart = float((mine.double() - other.double()).abs().max() / mine.double().abs().max())
    close = apart <= TOLERANCE  # False for NaN
    require(close, f"peer {name} output", f"off by {apart:.2g} of the largest", f"within {TOLERANCE:g}, weights shared")
    return f"largest difference {apart:.1e} of the largest output"
