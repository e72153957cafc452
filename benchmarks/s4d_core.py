"""CPU time of S4D's core, forward and backward, against its textbook form.

    python benchmarks/s4d_core.py                        # print the table
    python benchmarks/s4d_core.py --write results/bench/s4d_core_cpu.md

A core is discretised modes and a sequence in, the sequence convolved out: kernel generation and
the convolution in both directions, for sequences held as (B, L, H), transpositions included, and
as (B, H, L).
Both sides run interleaved in one process on one thread with the same allocator settings; times are
process CPU time, so other load on the machine mostly cancels.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.ssm import conv, core
from models.ssm.kernel import Modes
from models.ssm.s4d import S4D


class Case(NamedTuple):
    join: str
    length: int
    width: int
    state: int
    batch: int
    target: float  # textbook time over fast time


CASES = (
    Case("sum", 64, 384, 64, 64, 6.9),
    Case("sum", 256, 384, 64, 32, 6.1),
    Case("sum", 1024, 384, 64, 8, 13.0),
    Case("sum", 1024, 128, 16, 32, 3.9),
    Case("sum", 4096, 384, 64, 4, 22.0),
    Case("concat", 256, 384, 64, 32, 4.4),
    Case("concat", 1024, 384, 64, 8, 9.6),
    Case("concat", 1024, 128, 16, 32, 2.4),
)


class Spread(NamedTuple):
    """Milliseconds of CPU time: the median and the quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f} ({self.low:.1f}-{self.high:.1f})"


def keep_memory() -> str:
    """Stop glibc from returning large blocks after every operation: page faults would hide the arithmetic."""
    settings = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 256 << 20)}
    libc = ctypes.CDLL("libc.so.6")
    for name, (option, value) in settings.items():
        if not libc.mallopt(option, value):
            raise RuntimeError(f"mallopt refused {name}={value}")
    return ", ".join(f"{name}={value}" for name, (_, value) in settings.items())


def measure(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, Spread]:
    """Interleaved CPU times of every side, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            start = time.process_time()
            side()
            if repeat:
                times[name].append((time.process_time() - start) * 1e3)
    return {name: Spread(*statistics.quantiles(ts, n=4)) for name, ts in times.items()}


def layer(case: Case) -> S4D:
    torch.manual_seed(0)
    return S4D(case.width, case.state, join=case.join)


def training(case: Case, transposed: bool = False) -> dict[str, Callable[[], object]]:
    """Forward and backward of the core, to the gradients of the sequence and of every discretised mode.

    `transposed` sequences are held as (B, H, L), the order in which both sides transform.
    """
    s4d = layer(case)
    with torch.no_grad():
        modes = Modes(*(part.requires_grad_() for part in s4d.modes()))
    u = torch.randn(case.batch, case.length, case.width)
    grad = torch.randn(case.batch, case.length, case.width * s4d.streams)
    if transposed:
        u, grad = u.mT.contiguous().mT, grad.mT.contiguous().mT
    inputs = (u.requires_grad_(), *modes, s4d.D)

    def step(form: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(form(inputs[0], *inputs[1:]), inputs, grad)

    def textbook(u: Tensor, *rest: Tensor) -> Tensor:
        return core.textbook(u, Modes(*rest[:4]), rest[4])

    return {"textbook": step(textbook), "fast": step(core.s4d)}


def evaluation(case: Case, repeats: int) -> dict[str, Spread]:
    """Forward of the whole layer without gradients: textbook, tables remade each time, and cached."""
    s4d = layer(case)
    u = torch.randn(case.batch, case.length, case.width)
    training_mode, evaluating = s4d.train(), layer(case).eval()
    with torch.no_grad():
        sides: dict[str, Callable[[], object]] = {
            "textbook": lambda: core.textbook(u, evaluating.modes(), evaluating.D),
            "uncached": lambda: training_mode(u),
            "cached": lambda: evaluating(u),
        }
        return measure(sides, repeats)


def crossover(repeats: int) -> list[str]:
    """Forward and backward by Toeplitz matrices over transforms, for the threshold between them."""
    rows, default = [], core.DIRECT_LENGTH
    for length in (16, 32, 64, 128):
        for width, state, batch in ((384, 64, 64), (128, 16, 64), (384, 64, 8)):
            ratios = []
            for threshold in (0, math.inf):
                core.DIRECT_LENGTH = threshold  # type: ignore[assignment]
                fast = training(Case("sum", length, width, state, batch, 0))["fast"]
                ratios.append(measure({"fast": fast}, repeats)["fast"].median)
            rows.append(f"| {length} | {width} | {state} | {batch} | {ratios[0] / ratios[1]:.2f}x |")
    core.DIRECT_LENGTH = default
    return rows


def profile(case: Case, repeats: int) -> str:
    """Where the fast core's time goes, in ms: what bounds it."""
    s4d = layer(case)
    with torch.no_grad():
        modes = s4d.modes()
        u, x = torch.randn(case.batch, case.length, case.width), torch.randn(1, case.width, case.batch, case.length)
        n = core.transform_length(case.length)
        slab = torch.randn(max(1, conv.SLAB_BYTES // 4 // n), n)
        spectrum = torch.fft.rfft(slab)
        share = case.batch * case.width / len(slab)
        kernel = torch.randn(2, case.width, case.length)
        parts = measure(
            {
                "generation forward": lambda: core.split_kernel(
                    modes, core.power_tables(modes, case.length), case.length
                ),
                "generation backward": lambda: core.split_kernel_backward(
                    kernel, modes, core.power_tables(modes, case.length)
                ),
                "one layout change": lambda: core.channels_first(u),
                "one transform": lambda: torch.fft.rfft(slab),
                "one inverse": lambda: torch.fft.irfft(spectrum, n=n),
                "copy": lambda: x.clone(),
            },
            repeats,
        )
    scale = {"one transform": share, "one inverse": share}
    return ", ".join(f"{name} {spread.median * scale.get(name, 1):.1f}" for name, spread in parts.items())


def report(repeats: int) -> str:
    allocator = keep_memory()
    torch.set_num_threads(1)
    lines = [
        "# S4D core on one CPU thread",
        "",
        f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, float32; {allocator}.",
        f"Process CPU time in ms, median (quartiles) of {repeats} interleaved repeats; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} logical cores at the start.",
        "",
        "## Forward and backward of the core, textbook over fast",
        "",
        "| held as | join | L | D | N | B | textbook | fast | speed-up | aim |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        for transposed in (False, True):
            t = measure(training(case, transposed), repeats)
            ratio = t["textbook"].median / t["fast"].median
            held = "(B, H, L)" if transposed else "(B, L, H)"
            shape = f"{held} | {case.join} | {case.length} | {case.width} | {case.state} | {case.batch}"
            lines.append(f"| {shape} | {t['textbook']} | {t['fast']} | **{ratio:.1f}x** | {case.target}x |")
            print(lines[-1], flush=True)
    lines += ["", "## Forward of the layer while evaluating, over cached tables", ""]
    lines += ["| join | L | D | N | B | textbook | uncached | cached | uncached/cached | textbook/cached |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for case in CASES:
        for batch in (1, case.batch):
            t = evaluation(case._replace(batch=batch), repeats)
            gains = [t[side].median / t["cached"].median for side in ("uncached", "textbook")]
            shape = f"{case.join} | {case.length} | {case.width} | {case.state} | {batch}"
            times = f"{t['textbook']} | {t['uncached']} | {t['cached']}"
            lines.append(f"| {shape} | {times} | **{gains[0]:.1f}x** | {gains[1]:.0f}x |")
            print(lines[-1], flush=True)
    lines += ["", "## Direct over transforms, forward and backward, sum", ""]
    lines += ["| L | D | N | B | speed-up of direct |", "|---|---|---|---|---|", *crossover(repeats)]
    lines += ["", "## What bounds it: parts, ms", ""]
    lines += [f"- L={c.length}, D={c.width}, N={c.state}, B={c.batch}: {profile(c, repeats)}" for c in CASES[:5]]
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    features = [f for f in ("avx2", "avx512f") if f" {f} " in text]
    return f"{names[0] if names else platform.machine()} ({', '.join(features)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", type=Path, help="markdown file to write the tables to")
    arguments = parser.parse_args()
    text = report(arguments.repeats)
    print(text)
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
