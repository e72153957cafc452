"""Arrays computed by the reference codes on random weights, and what "equal to them" means.

The tolerances are the ones measured for these files: a reference in float32 differs from itself in
float64 by up to 1.5e-6 of the largest output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "parity"


@dataclass(frozen=True)
class ParityArrays:
    """One file: `params`, `inputs`, `outputs`, `mid`, `gradnorms` are its groups, prefix removed."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @property
    def cfg(self) -> dict[str, Any]:
        """The reference constructor's keyword arguments."""
        return json.loads(self.arrays["cfg_json"].tobytes())

    @property
    def params(self) -> dict[str, Tensor]:
        return self.group("param")

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.group("in")

    @property
    def outputs(self) -> dict[str, Tensor]:
        return self.group("out")

    @property
    def gradnorms(self) -> dict[str, Tensor]:
        return self.group("gradnorm")

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Every array under `prefix/`: {rest of the name: tensor}."""
        start = f"{prefix}/"
        return {key.removeprefix(start): self.tensor(key) for key in self.arrays if key.startswith(start)}


def load_parity(name: str) -> ParityArrays:
    """`load_parity("dit_p2")` reads tests/parity/dit_p2.npz."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return ParityArrays(name, dict(file))


def assert_forward(actual: Tensor, expected: Tensor, name: str = "forward") -> None:
    """rtol 1e-4, atol 1e-5 of the largest expected value."""
    _assert_close(actual, expected, rtol=1e-4, atol=1e-5, name=name)


def assert_gradient(actual: Tensor | None, expected: Tensor, name: str = "gradient") -> None:
    """rtol 1e-3; atol 1e-5 of the largest, for the entries that cancel to nearly zero."""
    assert actual is not None, f"{name}: there is no gradient"
    _assert_close(actual, expected, rtol=1e-3, atol=1e-5, name=name)


def assert_gradnorms(
    module: nn.Module, expected: Mapping[str, Tensor], own_key: Callable[[str], str] = lambda key: key
) -> None:
    """The L2 norm of every parameter's gradient, rtol 1e-3; none may be missing on either side.

    Gradients that are zero in exact arithmetic (a bias that a norm then removes) are rounding noise in both
    codes, measured at up to 4e-8 of the largest norm.
    """
    own = {key: p.grad for key, p in module.named_parameters() if p.requires_grad}
    assert {own_key(key) for key in expected} == own.keys()
    noise = 1e-7 * max(norm.item() for norm in expected.values())
    for key, norm in expected.items():
        grad = own[own_key(key)]
        assert grad is not None, f"{key}: there is no gradient"
        torch.testing.assert_close(grad.norm(), norm.reshape(()), rtol=1e-3, atol=noise, msg=f"gradient norm of {key}")


def _assert_close(actual: Tensor, expected: Tensor, rtol: float, atol: float, name: str) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        actual.detach(), expected.to(actual.dtype), rtol=rtol, atol=atol * scale, msg=lambda text: f"{name}: {text}"
    )


@contextmanager
def captured(module: nn.Module, *names: str) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named submodules during the calls made inside the block."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _args, output: seen.__setitem__(name, output.detach())

    hooks = [module.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def assert_matches_reference(
    module: nn.Module, parity: ParityArrays, own_key: Callable[[str], str] = lambda key: key
) -> None:
    """Forward, input gradient and every parameter's gradient norm, for files with in/x, in/t and in/y."""
    module.eval().zero_grad()
    x = parity.tensor("in/x").clone().requires_grad_()
    out = module(x, parity.inputs["t"], parity.inputs.get("y"))
    assert_forward(out, parity.outputs["forward"])
    (out * parity.tensor("grad/w")).sum().backward()
    assert_gradient(x.grad, parity.tensor("grad/x"), "gradient of x")
    assert_gradnorms(module, parity.gradnorms, own_key)
