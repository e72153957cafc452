"""The Triton kernels: right in the interpreter, and what the compiler makes of them for sm_90."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")

HERE = Path(__file__).parent
SHARED_MEMORY = 227 * 1024  # bytes that one program may have on sm_90
REGISTERS = 65536  # of one processor


def test_right_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        HERE / "interpreted.py",
    ]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Compiled(NamedTuple):
    shared: int
    registers: int
    local: int  # loads and stores of local memory, where registers spill to
    wgmma: int
    small_mma: int


def compiled(name: str, rows: int, warps: int, streams: int) -> Compiled:
    """For bf16, state 64, both directions."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.ssm import fused

    kernel: Any = getattr(fused, name)
    constants = {"C": fused.CHUNK, "R": rows, "N": 32, "DIRECTIONS": 2, "STREAMS": streams, "x_token": 1}
    constants |= {"grad_token": 1} if "grad_token" in kernel.arg_names else {}
    tables = dict.fromkeys(("filters", "modes", "products", "moments"), "*fp32")
    sequences = dict.fromkeys(("x", "grad", "y", "grad_x", "waiting", "adjoints"), "*bf16")
    types = tables | sequences | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(kernel.arg_names) if a not in constants}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    machine_code = disassembled(made.asm["cubin"])
    registers = re.search(r"REG:(\d+)", machine_code)
    assert registers
    return Compiled(
        shared=made.metadata.shared,
        registers=int(registers[1]),
        local=len(re.findall(r"\b(?:LDL|STL)\b", machine_code)),
        wgmma=machine_code.count("HGMMA"),
        small_mma=machine_code.count("HMMA"),
    )


def disassembled(cubin: bytes) -> str:
    """Resources and instructions of one kernel, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip(f"this Triton comes without {tool.name}")
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([tool, report, file.name] for report in ("-res-usage", "-sass"))
        return "".join(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("name", "batch", "streams"),
    [("conv_kernel", 64, 1), ("conv_kernel", 16, 2), ("conv_backward_kernel", 64, 2), ("conv_backward_kernel", 16, 1)],
)
def test_compiles_for_sm_90_without_spills_to_wgmma(name: str, batch: int, streams: int) -> None:
    from models.ssm import fused

    rows, warps = fused.launch(batch, backward=name == "conv_backward_kernel")
    assert rows == batch
    kernel = compiled(name, rows, warps, streams)
    assert kernel.local == 0
    assert kernel.small_mma == 0
    assert kernel.wgmma > 0
    assert kernel.shared <= SHARED_MEMORY
    assert kernel.registers * 32 * warps <= REGISTERS
