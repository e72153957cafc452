"""Everything there is to know of a GPU, in a few minutes: are the kernels right, and how fast is what.

    python -m benchmarks.gpu                          # on a CUDA machine; writes results/bench/<machine>/gpu_*
    python -m benchmarks.gpu --only exactness cores   # some of it
    python -m benchmarks.gpu --tiny --device cpu      # the same script on a CPU, kernels in Triton's interpreter

1. exactness: every form of S4D's core against float64, float32 and bf16, outputs and all gradients
2. ceilings: a copy and a matrix product, the two limits that everything else is a share of
3. cores: forward and forward with backward of every form, ours and peers', in turns; medians and quartiles
4. glue: norm with modulation and gate with sum, fused against as written; exactness too
5. graphs: small networks sampled and trained, every kernel launched against replayed as CUDA graphs; same samples,
   same weights?
6. models: bf16 training steps of DiffuSSM-XL and DiT-XL/2 at 256 and 512 pixels, images per second, utilisation,
   memory; sampling; and what one training step spends its time in
7. crossover: training steps of the two at equal model MACs from 256 to 1024 pixels, and where DiffuSSM's is faster

Times are the device's own (events), after a head start that hides launching, with caches flushed in between; those of
graphs are the wall clock's, with launching. A machine's whole record is this script, then again with
`--only models --compile`, then with `--only models --compile max-autotune`.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import gpu_glue, gpu_graphs
from benchmarks.clock import Clock, Spread, in_words
from benchmarks.exactness import LENGTHS, Case, table
from benchmarks.gpu_cores import FORMS, REFERENCE, Shape, sides
from benchmarks.gpu_crossover import at_equal_cost, crossing, total
from models import Denoiser, build, unet
from models.ssm.forms import Form, executed_flops
from study.bench.config import Cell, Compile, Network
from study.bench.store import machine_folder
from study.bench.workload import inputs, make_work
from study.optimizer import AUTOCAST

PARTS = ("exactness", "cores", "glue", "graphs", "models", "crossover")
FLOPS_PER_MAC = 2
SUFFIX: dict[Compile, str] = {False: "", True: "_compiled", "max-autotune": "_max_autotune"}  # of a record's files
COMPILED: dict[str, Compile] = {"true": True, "max-autotune": "max-autotune"}
SMALL = ("dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny")


class Plan(NamedTuple):
    """How large everything is."""

    device: torch.device
    rounds: int
    cases: dict[torch.dtype, list[Case]]
    shapes: list[Shape]
    networks: list[Network]
    batches: dict[int, int]  # by side of the input
    convolutional: tuple[str, int]  # a network that may be held channels last, and its batch
    small: tuple[str, ...]  # networks that launching bounds
    ways: tuple[str, ...]  # to compile their training step
    crossing: dict[int, int]  # batches by side of the input
    steps: int  # of a sample
    matrix: int  # side of the product that is the ceiling
    copied: int  # bytes of the copy that is
    dtype: str

    @classmethod
    def whole(cls, device: torch.device, rounds: int) -> Plan:
        cases = [Case(length, 2, 5, 32, 2, streams) for length in LENGTHS for streams in (1, 2)]
        # In float32 the kernels are there to be checked, and each variant takes half a minute to compile.
        batches = [Case(1000, batch, 3, 32) for batch in (1, 16, 33, 64)]
        both = {torch.float32: cases, torch.bfloat16: [*cases, *batches, Case(1024, 4, 3, 8), Case(300, 2, 3, 4, 1, 1)]}
        shapes = [Shape(b, n, 1152, 64, join) for join in ("sum", "concat") for n in (1024, 4096) for b in (16, 64)]
        networks = [Network(name, (side, side)) for side in (32, 64) for name in ("diffussm-xl", "dit-xl/2")]
        return cls(
            *(device, rounds, both, shapes, networks, {32: 64, 64: 16}, ("unet-ldm-8", 32), SMALL),
            *(("false", "true", "reduce-overhead", "graph"), {32: 32, 48: 16, 64: 8, 96: 4, 128: 2}),
            *(10, 8192, 1 << 31, "bf16"),
        )

    @classmethod
    def tiny(cls, device: torch.device) -> Plan:
        networks = [Network(name, (8, 8)) for name in ("diffussm-tiny", "dit-tiny")]
        shape = Shape(2, 70, 2, 8, "sum")
        cases = {torch.float32: [Case(100, 2, 1)]}
        return cls(
            *(device, 3, cases, [shape], networks, {8: 2}, ("unet-tiny", 2), SMALL[:2]),
            *(("false",), {8: 2, 12: 2}),
            *(2, 64, 1 << 16, "fp32"),
        )


class Ceilings(NamedTuple):
    copy: float  # bytes per second, read and written together
    product: float  # floating-point operations per second


def exactness(plan: Plan) -> Iterator[dict[str, str]]:
    """Of the core's forms, then of small networks whose glue is fused."""
    rows = (
        [cell.strip() for cell in row.strip("|").split("|")] for row in table(str(plan.device), list(Form), plan.cases)
    )
    names = [name or "verdict" for name in next(rows)]
    next(rows)  # the rule below the names
    yield from (dict(zip(names, row, strict=True)) for row in rows)
    yield from gpu_glue.network_errors(plan.device)


def ceilings(plan: Plan, clock: Clock) -> Ceilings:
    source = torch.ones(plan.copied // 4, device=plan.device)
    target = torch.empty_like(source)
    dtype = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    a, b = (torch.randn(plan.matrix, plan.matrix, device=plan.device, dtype=dtype) for _ in range(2))
    times = clock.interleaved({"copy": lambda: target.copy_(source), "product": lambda: a @ b}, max(plan.rounds, 5))
    copy, product = (times[name].median / 1e3 for name in ("copy", "product"))  # type: ignore[union-attr]
    return Ceilings(2 * source.nbytes / copy, FLOPS_PER_MAC * plan.matrix**3 / product)


def cores(plan: Plan, clock: Clock, limits: Ceilings) -> Iterator[dict[str, str]]:
    """A line per shape, form and direction of the pass."""
    for shape in plan.shapes:
        made, absent = sides(shape, plan.device)
        floor = shape.least_bytes() / limits.copy * 1e3
        for reason in absent:
            yield {"shape": str(shape), "form": reason, "pass": "", "ms": "not here"}
        passes = {
            "forward": {name: side.forward for name, side in made.items()},
            "forward and backward": {name: side.both for name, side in made.items() if side.both is not None},
        }
        for what, calls in passes.items():
            times = clock.interleaved(calls, plan.rounds)
            yield from core_lines(shape, what, times, floor if what == "forward" else None)
        del made
        if clock.cuda:
            torch.cuda.empty_cache()


def core_lines(
    shape: Shape, what: str, times: dict[str, Spread | str], floor: float | None
) -> Iterator[dict[str, str]]:
    """`x reference`: how often faster than the module. Forward, `x floor`: how often slower than moving x and y
    once; `TFLOP/s`: of the operations that this form executes."""
    reference = times[REFERENCE]
    u, directions = (shape.batch, shape.length, shape.width), 2
    for name, spread in times.items():
        line = {"shape": str(shape), "form": name, "pass": what, "ms": str(spread)}
        if isinstance(spread, Spread) and isinstance(reference, Spread):
            line["x reference"] = f"{reference.median / spread.median:.1f}"
        if isinstance(spread, Spread) and floor is not None:
            line["x floor"] = f"{spread.median / floor:.2f}"
            if name in FORMS:
                done = executed_flops(FORMS[name], u, shape.state // 2, directions, shape.streams)
                line["TFLOP/s"] = f"{done / spread.median / 1e9:.2f}"
        yield line


def glued(plan: Plan, clock: Clock) -> Iterator[dict[str, str]]:
    half = torch.bfloat16 if plan.dtype == "bf16" else torch.float32
    width = plan.shapes[0].width
    for dtype in plan.cases:  # bf16 as autocast runs it
        yield from gpu_glue.errors(dtype, plan.device, max(64, width))  # a norm of two numbers has no slope
    batch, length = plan.shapes[0].batch, plan.shapes[0].length
    times = clock.interleaved(gpu_glue.calls(batch, length, width, half, plan.device), plan.rounds)
    for name, spread in times.items():
        yield {"glue": name, "shape": f"B={batch} L={length} D={width}", "ms": str(spread)}


def models(plan: Plan, clock: Clock, limits: Ceilings, how: Compile, folder: Path) -> Iterator[dict[str, str]]:
    """Training steps, then samples; a profile of every step is left in the folder."""
    for side, batch in plan.batches.items():
        for mode in ("train", "sample"):
            cells = {
                f"{network.name} {side}x{side}": Cell(
                    network, mode, batch, plan.dtype, how, str(plan.device), steps=plan.steps
                )
                for network in plan.networks
                if network.size[0] == side
            }
            yield from model_lines(plan, clock, limits, cells, folder)
    yield from formats(plan, clock, *plan.convolutional)


def model_lines(
    plan: Plan, clock: Clock, limits: Ceilings, cells: dict[str, Cell], folder: Path
) -> Iterator[dict[str, str]]:
    """Networks one after the other: two of these do not fit beside each other."""
    for name, cell in cells.items():
        line = {"model": name, "mode": cell.mode, "batch": str(cell.batch)}
        if cell.mode == "sample":
            line["mode"] = f"sample, {cell.steps} steps, guidance {cell.guidance:g}"
        spread, call = timed(cell, clock, max(2, plan.rounds // 2))
        line["ms"] = str(spread)
        if isinstance(spread, Spread):
            seconds = spread.median / 1e3
            line["img/s"] = f"{cell.batch / seconds:.1f}"
            line["utilisation"] = f"{FLOPS_PER_MAC * (cell.gmacs() or 0) * 1e9 / seconds / limits.product:.1%}"
        if clock.cuda:
            line["GiB"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"
        yield line
        if cell.mode == "train" and isinstance(spread, Spread):
            file = folder / f"gpu_profile_{re.sub('[^a-z0-9]+', '-', name)}{SUFFIX[cell.compile]}.txt"
            file.write_text(f"{name}, batch {cell.batch}: where a training step goes\n{profiled(call, clock.cuda)}\n")
        del call


def timed(cell: Cell, clock: Clock, rounds: int) -> tuple[Spread | str, Callable[[], object]]:
    """Of a whole step or sample of a network, or why there is none; and the call."""
    if clock.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        work, _ = make_work(cell)
    except Exception as refusal:  # the other networks are still measured
        return in_words(refusal), lambda: None
    call = _all_phases(list(work.values()))
    return clock.interleaved({"": call}, rounds)[""], call


def crossover(plan: Plan, clock: Clock) -> Iterator[dict[str, str]]:
    """DiffuSSM's training step over DiT's, each by its model MACs; the depth of the first makes them nearly equal."""
    ours, theirs = (network.backbone for network in plan.networks[:2])
    ratios: dict[int, float] = {}
    for side, batch in plan.crossing.items():
        other = Network(theirs, (side, side))
        pair = {theirs: other, ours: at_equal_cost(ours, other)}
        pixels = side * other.config.latent_factor
        line = {"pixels": str(pixels), "batch": str(batch), "networks": f"{pair[ours].name}, {theirs}"}
        found = {}
        for name, network in pair.items():
            cell = Cell(network, "train", batch, plan.dtype, device=str(plan.device))
            found[name], _ = timed(cell, clock, max(2, plan.rounds // 2))
            line[f"{name} ms"], line[f"{name} GMACs"] = str(found[name]), f"{total(network) / 1e9:.4g}"
        first, second = found[ours], found[theirs]
        if isinstance(first, Spread) and isinstance(second, Spread):
            ratios[pixels] = first.median / total(pair[ours]) / (second.median / total(other))
            line["ratio at equal MACs"] = f"{ratios[pixels]:.2f}"
        yield line
    yield {"pixels": "crossover", "ratio at equal MACs": crossing(ratios)}


def graphs(plan: Plan) -> Iterator[dict[str, str]]:
    """Samples first, which must be the same; then whole training steps."""
    clock = Clock(plan.device, launching=True)
    for name in plan.small:
        calls, facts = gpu_graphs.sampling(name, 8, plan.steps, plan.device)
        line = {"network": name, "what": f"8 samples, {plan.steps} steps, guided"}
        for way, spread in clock.interleaved(calls, plan.rounds).items():
            yield line | {"way": way, "ms": str(spread)} | facts
    for name in plan.small:
        calls, facts = gpu_graphs.training(name, plan.ways, plan.device)
        for way, spread in clock.interleaved(calls, plan.rounds).items():
            yield {"network": name, "what": "training step", "way": way, "ms": str(spread)} | facts.get(way, {})


def formats(plan: Plan, clock: Clock, name: str, batch: int) -> Iterator[dict[str, str]]:
    """Forward and backward of a U-Net with features held channels first and last."""
    network = build(name).to(plan.device)
    given, dtype = inputs(network.config, batch, plan.device), AUTOCAST.get(plan.dtype)
    calls = {
        f"{name}, channels {'last' if last else 'first'}": partial(_step, network, last, *given, dtype)
        for last in (False, True)
    }
    for label, spread in clock.interleaved(calls, max(2, plan.rounds // 2)).items():
        yield {"model": label, "mode": "forward and backward", "batch": str(batch), "ms": str(spread)}


def _step(
    network: Denoiser, channels_last: bool, x: Tensor, t: Tensor, y: Tensor | None, dtype: torch.dtype | None
) -> None:
    default, unet.prefers_channels_last = unet.prefers_channels_last, lambda x: channels_last
    try:
        _forward_and_backward(network, x, t, y, dtype)
    finally:
        unet.prefers_channels_last = default


def _forward_and_backward(network: Denoiser, x: Tensor, t: Tensor, y: Tensor | None, dtype: torch.dtype | None) -> None:
    with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
        output = network(x, t, y)
    output.float().square().mean().backward()


def _all_phases(phases: list[Callable[[], object]]) -> Callable[[], object]:
    return lambda: [phase() for phase in phases]


def profiled(call: Callable[[], object], cuda: bool) -> str:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        call()
    key = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60)


def markdown(lines: list[dict[str, str]]) -> str:
    columns = list(dict.fromkeys(key for line in lines for key in line))
    rows = [columns, ["---"] * len(columns), *([line.get(column, "") for column in columns] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def write(folder: Path, name: str, lines: list[dict[str, str]], head: str) -> None:
    """`gpu_<name>.md` to read and `gpu_<name>.csv` to compute with."""
    (folder / f"gpu_{name}.md").write_text(f"{head}\n\n{markdown(lines)}")
    with (folder / f"gpu_{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in lines for key in line)))
        writer.writeheader()
        writer.writerows(lines)


def described(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, kernels interpreted"
    return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def run(plan: Plan, only: list[str], folder: Path, how: Compile) -> bool:
    """Whether everything that was checked is within the tolerances."""
    clock, head, right = Clock(plan.device), described(plan.device), True
    folder.mkdir(parents=True, exist_ok=True)
    print(head, flush=True)
    if "exactness" in only:
        right = written(folder, "exactness", exactness(plan), head)
    limits = ceilings(plan, clock)
    line = {"copy GB/s": f"{limits.copy / 1e9:.1f}", "product TFLOP/s": f"{limits.product / 1e12:.2f}"}
    print(markdown([line]), flush=True)
    write(folder, "ceilings", [line], head)
    parts = {
        "cores": cores(plan, clock, limits),
        "glue": glued(plan, clock),
        "graphs": graphs(plan),
        "models": models(plan, clock, limits, how, folder),
        "crossover": crossover(plan, clock),
    }
    for name, made in parts.items():
        if name in only:
            right &= written(folder, name + SUFFIX[how] * (name == "models"), made, head)
    return right


def written(folder: Path, name: str, made: Iterator[dict[str, str]], head: str) -> bool:
    """Whether every verdict is good; the files hold every line as soon as it is made."""
    lines: list[dict[str, str]] = []
    for line in made:
        print(" | ".join(line.values()), flush=True)
        lines.append(line)
        write(folder, name, lines, head)
    return all(line.get("verdict", "within") == "within" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or with --tiny cpu")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: proves that the script runs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="ceilings are always measured")
    parser.add_argument("--rounds", type=int, default=20, help="times that every form takes its turn, at least 2")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="true",
        choices=COMPILED,
        help="compile the models (a minute or so each, max-autotune many), into files of their own",
    )
    parser.add_argument("--out", type=Path, help="folder of the results (results/bench/<this machine>)")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if asked.rounds < 2:
        parser.error(f"--rounds {asked.rounds} is not valid: must be at least 2")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {asked.device} is not valid: no CUDA device here; must be cpu with --tiny")
    if device.type == "cpu" and not asked.tiny:
        parser.error("--device cpu is not valid without --tiny: the kernels are interpreted there")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported, and torch may have
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:]])
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # memory, events and random numbers are those of the current one
    plan = Plan.tiny(device) if asked.tiny else Plan.whole(device, asked.rounds)
    right = run(plan, asked.only, asked.out or machine_folder(asked.device), COMPILED.get(asked.compile, False))
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
