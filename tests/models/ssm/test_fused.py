"""The Triton kernels: right in the interpreter, and what the compiler makes of them for sm_90."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.models.triton_tools import REGISTERS, SHARED_MEMORY, assert_passes_interpreted, compiled

pytest.importorskip("triton", reason="Triton is not installed")

TYPES = dict.fromkeys(("filters", "modes", "products", "moments"), "*fp32")
TYPES |= {f"{of}{part}": "*fp32" for of in ("", "grad_") for part in ("a_re", "a_im", "c_re", "c_im", "skip")}
TYPES |= {"packed": "*fp32"}
TYPES |= dict.fromkeys(("x", "grad", "y", "grad_x", "waiting", "adjoints"), "*bf16")


def test_right_in_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted.py")


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("name", "batch", "streams"),
    [("conv_kernel", 64, 1), ("conv_kernel", 16, 2), ("conv_backward_kernel", 64, 2), ("conv_backward_kernel", 16, 1)],
)
def test_compiles_for_sm_90_without_spills_to_wgmma(name: str, batch: int, streams: int) -> None:
    """For bf16, state 64, both directions, with the rows and warps that the batch gets."""
    from models.ssm import fused

    kernel: Any = getattr(fused, name)
    rows, warps = fused.launch(batch, backward=name == "conv_backward_kernel")
    assert rows == batch
    constants = {"C": fused.FUSED_CHUNK, "R": rows, "N": 32, "DIRECTIONS": 2, "STREAMS": streams, "x_token": 1}
    constants |= {"grad_token": 1} if "grad_token" in kernel.arg_names else {}
    made = compiled(kernel, TYPES, constants, warps)
    assert made.local == 0
    assert made.small_mma == 0
    assert made.wgmma > 0
    assert made.shared <= SHARED_MEMORY
    assert made.registers * 32 * warps <= REGISTERS


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", ["tables_kernel", "chain_rule_kernel"])
@pytest.mark.parametrize("streams", [1, 2])
def test_what_surrounds_them_compiles_for_sm_90_without_spills(name: str, streams: int) -> None:
    from models.ssm import fused

    constants = {"C": fused.FUSED_CHUNK, "N": 32, "DIRECTIONS": 2, "STREAMS": streams}
    made = compiled(getattr(fused, name), TYPES, constants, 4)
    assert made.local == 0
    assert made.shared <= SHARED_MEMORY
    assert made.registers * 32 * 4 <= REGISTERS
