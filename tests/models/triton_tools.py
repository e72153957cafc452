"""Triton without a GPU: tests run in its interpreter, and what its compiler makes of a kernel for sm_90."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import pytest
import torch

SHARED_MEMORY = 227 * 1024  # bytes that one program may have on sm_90
REGISTERS = 65536  # of one processor


def assert_passes_interpreted(file: Path) -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Guarded:
    """A kernel that may only be launched where the current device is that of its tensors."""

    def __init__(self, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.entered, self.launches = kernel, False, 0
        monkeypatch.setattr(torch.cuda, "device_of", self.device_of)

    @contextmanager
    def device_of(self, tensor: torch.Tensor) -> Iterator[None]:
        self.entered = True
        yield
        self.entered = False

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert self.entered, "launched on whichever device is the current one"
        self.launches += 1
        return self.kernel[grid]


class Compiled(NamedTuple):
    shared: int
    registers: int
    local: int  # loads and stores of local memory, where registers spill to
    wgmma: int
    small_mma: int


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, int], warps: int) -> Compiled:
    """For sm_90, every pointer and every integer a multiple of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = types | dict.fromkeys(constants, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, argument in enumerate(kernel.arg_names)
        if signature[argument] not in ("constexpr", "fp32")
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    machine_code = _disassembled(made.asm["cubin"], Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")
    registers = re.search(r"REG:(\d+)", machine_code)
    assert registers
    return Compiled(
        shared=made.metadata.shared,
        registers=int(registers[1]),
        local=len(re.findall(r"\b(?:LDL|STL)\b", machine_code)),
        wgmma=machine_code.count("HGMMA"),
        small_mma=machine_code.count("HMMA"),
    )


def _disassembled(cubin: bytes, tool: Path) -> str:
    """Resources and instructions of one kernel, by the tool that comes with Triton."""
    if not tool.exists():
        pytest.skip(f"this Triton comes without {tool.name}")
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        commands = ([tool, report, file.name] for report in ("-res-usage", "-sass"))
        return "".join(subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands)
