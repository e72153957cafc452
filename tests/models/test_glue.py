"""Norm with modulation and gate with sum: fused kernels right in the interpreter, nothing changed on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from models.layers.modulation import gated_sum, modulate, norm_modulate
from tests.models.triton_tools import assert_passes_interpreted, compiled

pytest.importorskip("triton", reason="Triton is not installed")

X, SHIFT, SCALE = torch.randn(2, 5, 8), torch.randn(2, 8), torch.randn(2, 8)


def test_right_in_the_interpreter() -> None:
    assert_passes_interpreted(Path(__file__).parent / "interpreted_glue.py")


def test_a_cpu_computes_the_plain_expressions_to_the_bit() -> None:
    norm = nn.LayerNorm(8, elementwise_affine=False, eps=1e-6)
    assert torch.equal(norm_modulate(X, norm, SHIFT, SCALE), modulate(norm(X), SHIFT, SCALE))
    assert torch.equal(gated_sum(X, SHIFT, 2 * X), X + SHIFT[:, None] * (2 * X))


KERNELS = ("norm_modulate_kernel", "norm_modulate_backward_kernel", "gated_sum_kernel", "gated_sum_backward_kernel")


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_sm_90_without_spills(name: str) -> None:
    """Width 1152, the residual stream in float32, the rest as autocast has it."""
    from models.layers import glue, glue_kernels

    kernel = getattr(glue_kernels, name)
    wide = dict.fromkeys(("mean", "rstd", "grad_shift", "grad_scale", "grad_gate", "grad_x"), "*fp32")
    half = dict.fromkeys(("shift", "scale", "gate", "branch", "grad_branch"), "*bf16")
    result = {"y": "*bf16" if "norm" in name else "*fp32", "grad": "*bf16" if "norm" in name else "*fp32"}
    block = glue._block(1152)
    constants = {"BLOCK": block["BLOCK"]} | ({"RUN": glue.RUN} if "RUN" in kernel.arg_names else {})
    types = wide | half | result | {"x": "*fp32", "eps": "fp32"}
    assert compiled(kernel, types, constants, block["num_warps"]).local == 0
