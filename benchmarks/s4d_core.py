"""CPU time of S4D's core against its textbook form, and of evaluating with cached tables.

    python -m benchmarks.s4d_core                       # print the tables
    python -m benchmarks.s4d_core --rounds 9 --out results/bench/s4d_core_cpu.md

A core is discretised modes and a sequence in, the sequence convolved out: kernel generation and the
convolution in both directions. Sequences are held as (B, L, H), as the models do, transpositions
included, and as (B, H, L), in which both sides compute; each layout is compared with itself.
All sides run interleaved in one process on one thread with the same allocator settings; times are
process CPU time, so other load on the machine mostly cancels.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.clock import Spread
from models.ssm import conv, core
from models.ssm.kernel import Modes, power_tables, split_kernel, split_kernel_backward
from models.ssm.s4d import S4D
from study.allocator import keep_freed_memory


class Case(NamedTuple):
    join: str
    length: int
    width: int
    state: int
    batch: int
    aim: float  # textbook time over fast time


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
    return {name: Spread.of(ts) for name, ts in times.items()}


def layer(case: Case) -> S4D:
    torch.manual_seed(0)
    return S4D(case.width, case.state, join=case.join)


def training(case: Case, layout: str = "(B, L, H)") -> dict[str, Callable[[], object]]:
    """Forward and backward of the core, to the gradients of the sequence and of every discretised mode."""
    s4d = layer(case)
    with torch.no_grad():
        modes = Modes(*(part.requires_grad_() for part in s4d.modes()))
    u = torch.randn(case.batch, case.length, case.width)
    grad = torch.randn(case.batch, case.length, case.width * s4d.streams)
    if layout == "(B, H, L)":
        u, grad = u.mT.contiguous().mT, grad.mT.contiguous().mT
    inputs = (u.requires_grad_(), *modes, s4d.D)

    def step(form: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(form(inputs[0], *inputs[1:]), inputs, grad)

    def textbook(u: Tensor, *rest: Tensor) -> Tensor:
        return core.textbook(u, Modes(*rest[:4]), rest[4])

    return {"textbook": step(textbook), "fast": step(core.s4d)}


@torch.no_grad()
def evaluation(case: Case, rounds: int) -> dict[str, Spread]:
    """Forward of the whole layer without gradients: textbook, tables remade each time, and cached."""
    u = torch.randn(case.batch, case.length, case.width)
    remaking, cached = layer(case).train(), layer(case).eval()
    sides = {
        "textbook": lambda: core.textbook(u, cached.modes(), cached.D),
        "uncached": lambda: remaking(u),
        "cached": lambda: cached(u),
    }
    return measure(sides, rounds)


def crossover(rounds: int) -> Iterator[str]:
    """Toeplitz matrices against transforms, both forward and backward and with tables at hand."""
    for length in (16, 32, 64, 128, 256):
        for width, state, batch in ((384, 64, 64), (128, 16, 64), (384, 64, 8)):
            case = Case("sum", length, width, state, batch, 0)
            trained, applied = measure(trained_forms(case), rounds), measure(applied_forms(case), rounds)
            ratios = [t["transforms"].median / t["direct"].median for t in (trained, applied)]
            yield f"| {length} | {width} | {state} | {batch} | {ratios[0]:.2f}x | {ratios[1]:.2f}x |"


THRESHOLDS = {"direct": 1 << 30, "transforms": 0}


def trained_forms(case: Case) -> dict[str, Callable[[], object]]:
    fast = training(case)["fast"]
    return {form: partial(forced, form, fast) for form in THRESHOLDS}


@torch.no_grad()
def applied_forms(case: Case) -> dict[str, Callable[[], object]]:
    s4d, u = layer(case), torch.randn(case.batch, case.length, case.width)
    make = partial(core.s4d_tables, *s4d.modes(), s4d.D, case.length)
    return {form: partial(core.s4d_apply, u, forced(form, make)) for form in THRESHOLDS}


def forced(form: str, run: Callable[[], Any]) -> Any:
    """`run` with one form of the convolution for every length."""
    default, core.DIRECT_LENGTH = core.DIRECT_LENGTH, THRESHOLDS[form]
    try:
        return run()
    finally:
        core.DIRECT_LENGTH = default


def profile(case: Case, rounds: int) -> str:
    """Where the fast core's time goes, in ms: what bounds it."""
    s4d = layer(case)
    with torch.no_grad():
        modes = s4d.modes()
        u, x = torch.randn(case.batch, case.length, case.width), torch.randn(case.width, case.batch, case.length)
        n = conv.transform_length(case.length)
        slab = torch.randn(max(1, conv.SLAB_BYTES // 8 // n), n)
        spectrum = torch.fft.rfft(slab)
        share = case.batch * case.width / len(slab)
        kernel = torch.randn(2, case.width, case.length)
        powers = power_tables(modes, case.length)
        sides: dict[str, Callable[[], object]] = {
            "tables of powers": lambda: power_tables(modes, case.length),
            "kernels from them": lambda: split_kernel(modes, powers, case.length),
            "backward to modes": lambda: split_kernel_backward(kernel, modes, powers),
            "one layout change in": lambda: core.channels_first(u, u.dtype),
            "one layout change out": lambda: core._tokens_first(x, u),
            "one transform": lambda: torch.fft.rfft(slab),
            "one inverse": lambda: torch.fft.irfft(spectrum, n=n),
            "copy": lambda: x.clone(),
        }
        if case.length <= core.DIRECT_LENGTH:
            matrices = torch.randn(case.width, case.length, case.length)
            sides["one product with Toeplitz matrices"] = lambda: torch.bmm(x, matrices)
        parts = measure(sides, rounds)
    scale = {"one transform": share, "one inverse": share}
    return ", ".join(f"{name} {spread.median * scale.get(name, 1):.1f}" for name, spread in parts.items())


def trained_rows(rounds: int) -> Iterator[str]:
    """Textbook over fast, each pair in one layout."""
    yield "| join | L | D | N | B | held as | textbook | fast | textbook/fast | aim | |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for case in CASES:
        layouts = ("(B, H, L)", "(B, L, H)")
        sides = {f"{side} {held}": run for held in layouts for side, run in training(case, held).items()}
        t = measure(sides, rounds)
        for held in layouts:
            textbook, fast = t[f"textbook {held}"], t[f"fast {held}"]
            ratio = textbook.median / fast.median
            shape = f"{case.join} | {case.length} | {case.width} | {case.state} | {case.batch} | {held}"
            verdict = "met" if ratio >= case.aim else "missed"
            yield f"| {shape} | {textbook} | {fast} | **{ratio:.1f}x** | {case.aim}x | {verdict} |"


def evaluated_rows(rounds: int) -> Iterator[str]:
    """Textbook over cached, and uncached over cached."""
    yield "| join | L | D | N | B | textbook | uncached | cached | textbook/cached | uncached/cached |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for case in CASES:
        for batch in (1, case.batch):
            t = evaluation(case._replace(batch=batch), rounds)
            slow, again = (t[side].median / t["cached"].median for side in ("textbook", "uncached"))
            shape = f"{case.join} | {case.length} | {case.width} | {case.state} | {batch}"
            times = f"{t['textbook']} | {t['uncached']} | {t['cached']}"
            yield f"| {shape} | {times} | **{slow:.1f}x** | **{again:.1f}x** |"


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
    yield from ("", "## Forward and backward of the core", "")
    yield "The baseline is the textbook form (every power of every mode written out, two flipped transforms) on"
    yield "sequences held in the same layout."
    yield ""
    yield from trained_rows(rounds)
    yield from ("", "## Forward of the layer while evaluating", "")
    yield "Sequences held as (B, L, H). Two baselines: the textbook form, which keeps nothing, and the fast form"
    yield "making its tables on every call. The second ratio shrinks with the batch, for tables do not grow with it."
    yield ""
    yield from evaluated_rows(rounds)
    yield from ("", "## Toeplitz matrices over transforms, sum, sequences held as (B, L, H)", "")
    yield "| L | D | N | B | forward and backward | forward, tables cached |"
    yield "|---|---|---|---|---|---|"
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
