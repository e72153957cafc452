"""CPU time of S4D's core, forward and backward, against its textbook form.

    python benchmarks/s4d_core.py                        # print the tables
    python benchmarks/s4d_core.py --rounds 9 --out results/bench/s4d_core_cpu.md

A core is discretised modes and a sequence in, the sequence convolved out: kernel generation and
the convolution in both directions, for sequences held as (B, L, H), transpositions included, and
as (B, H, L).
Both sides run interleaved in one process on one thread with the same allocator settings; times are
process CPU time, so other load on the machine mostly cancels.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.ssm import conv, core
from models.ssm.kernel import Modes
from models.ssm.s4d import S4D
from study.allocator import keep_freed_memory


class Case(NamedTuple):
    join: str
    length: int
    width: int
    state: int
    batch: int
    aim: float  # textbook time over fast time, sequences held as (B, H, L)


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


def measure(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, Spread]:
    """Interleaved CPU times of every side, each after an untimed run of itself.

    Without that run a side pays for handing back to the system what the other left above the trim threshold.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            side()
            start = time.process_time()
            side()
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


def evaluation(case: Case, rounds: int) -> dict[str, Spread]:
    """Forward of the whole layer without gradients: textbook, tables remade each time, and cached."""
    s4d = layer(case)
    u = torch.randn(case.batch, case.length, case.width)
    training_mode, evaluating = s4d.train(), layer(case).eval()
    with torch.no_grad():
        slow = measure({"textbook": lambda: core.textbook(u, evaluating.modes(), evaluating.D)}, 2)
        return slow | measure({"uncached": lambda: training_mode(u), "cached": lambda: evaluating(u)}, rounds)


def crossover(rounds: int) -> list[str]:
    """Forward and backward by Toeplitz matrices over transforms, for the threshold between them."""
    rows, default = [], core.DIRECT_LENGTH
    for length in (16, 32, 64, 128):
        for width, state, batch in ((384, 64, 64), (128, 16, 64), (384, 64, 8)):
            ratios = []
            for threshold in (0, math.inf):
                core.DIRECT_LENGTH = threshold  # type: ignore[assignment]
                fast = training(Case("sum", length, width, state, batch, 0))["fast"]
                ratios.append(measure({"fast": fast}, rounds)["fast"].median)
            rows.append(f"| {length} | {width} | {state} | {batch} | {ratios[0] / ratios[1]:.2f}x |")
    core.DIRECT_LENGTH = default
    return rows


def profile(case: Case, rounds: int) -> str:
    """Where the fast core's time goes, in ms: what bounds it."""
    s4d = layer(case)
    with torch.no_grad():
        modes = s4d.modes()
        u, x = torch.randn(case.batch, case.length, case.width), torch.randn(1, case.width, case.batch, case.length)
        n = core.transform_length(case.length)
        slab = torch.randn(max(1, conv.SLAB_BYTES // 8 // n), n)
        spectrum = torch.fft.rfft(slab)
        share = case.batch * case.width / len(slab)
        kernel = torch.randn(2, case.width, case.length)
        powers = core.power_tables(modes, case.length)
        sides: dict[str, Callable[[], object]] = {
            "tables of powers": lambda: core.power_tables(modes, case.length),
            "kernels from them": lambda: core.split_kernel(modes, powers, case.length),
            "backward to modes": lambda: core.split_kernel_backward(kernel, modes, powers),
            "one layout change": lambda: core.channels_first(u),
            "one transform": lambda: torch.fft.rfft(slab),
            "one inverse": lambda: torch.fft.irfft(spectrum, n=n),
            "copy": lambda: x.clone(),
        }
        if case.length <= core.DIRECT_LENGTH:
            matrices = torch.randn(case.width, case.length, case.length)
            sides["one product with Toeplitz matrices"] = lambda: torch.bmm(x[0], matrices)
        parts = measure(sides, rounds)
    scale = {"one transform": share, "one inverse": share}
    return ", ".join(f"{name} {spread.median * scale.get(name, 1):.1f}" for name, spread in parts.items())


def trained_rows(rounds: int) -> Iterator[str]:
    """Textbook over fast; the aims were set for sequences held as (B, H, L)."""
    yield "| held as | join | L | D | N | B | textbook | fast | speed-up | aim | |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for case in CASES:
        for transposed in (True, False):
            t = measure(training(case, transposed), rounds)
            ratio = t["textbook"].median / t["fast"].median
            held = "(B, H, L)" if transposed else "(B, L, H)"
            shape = f"{held} | {case.join} | {case.length} | {case.width} | {case.state} | {case.batch}"
            verdict = "met" if ratio >= case.aim else "missed"
            yield f"| {shape} | {t['textbook']} | {t['fast']} | **{ratio:.1f}x** | {case.aim}x | {verdict} |"


def evaluated_rows(rounds: int) -> Iterator[str]:
    """Uncached over cached, and textbook over cached."""
    yield "| join | L | D | N | B | textbook | uncached | cached | uncached/cached | textbook/cached |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for case in CASES:
        for batch in (1, case.batch):
            t = evaluation(case._replace(batch=batch), rounds)
            gains = [t[side].median / t["cached"].median for side in ("uncached", "textbook")]
            shape = f"{case.join} | {case.length} | {case.width} | {case.state} | {batch}"
            times = f"{t['textbook']} | {t['uncached']} | {t['cached']}"
            yield f"| {shape} | {times} | **{gains[0]:.1f}x** | {gains[1]:.0f}x |"


def report(rounds: int) -> Iterator[str]:
    """The tables, line by line as they are measured."""
    allocator = keep_freed_memory()
    torch.set_num_threads(1)
    yield "# S4D core on one CPU thread"
    yield ""
    yield f"{cpu_name()}; Python {platform.python_version()}, torch {torch.__version__}, float32."
    yield f"Allocator of both sides: {allocator} (study/allocator.py: mmap from 1 GiB, never trim, pad 256 MiB)."
    yield f"Process CPU time in ms, median (quartiles) of {rounds} interleaved rounds, "
    yield "each run after an untimed one of the same side; "
    yield f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} logical cores at the start."
    yield from ("", "## Forward and backward of the core, textbook over fast", "")
    yield from trained_rows(rounds)
    yield from ("", "## Forward of the layer while evaluating, over cached tables", "")
    yield from evaluated_rows(rounds)
    yield from ("", "## Direct over transforms, forward and backward, sum", "")
    yield from ("| L | D | N | B | speed-up of direct |", "|---|---|---|---|---|")
    yield from crossover(rounds)
    yield from ("", "## What bounds it: parts, ms", "")
    for c in CASES[:5]:
        yield f"- L={c.length}, D={c.width}, N={c.state}, B={c.batch}: {profile(c, rounds)}"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    features = [f for f in ("avx2", "avx512f") if f" {f} " in text]
    return f"{names[0] if names else platform.machine()} ({', '.join(features)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="repeats of every measurement, at least 2")
    parser.add_argument("--out", type=Path, metavar="FILE", help="markdown file to write the tables to")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds} is not valid: must be at least 2")
    lines = []
    for line in report(arguments.rounds):
        print(line, flush=True)
        lines.append(line)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
