"""How far each form of S4D's core is from the textbook in float64: the output and the gradient of every input.

    python benchmarks/exactness.py                         # the forms that run on this machine, as a table
    TRITON_INTERPRET=1 python benchmarks/exactness.py      # and the Triton kernels, on a CPU

Inputs are rounded to the dtype at hand before either side sees them. An error is the norm of the difference
over the norm of the reference; rounding the output alone makes 1.7e-3 in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from models.ssm import core, forms
from models.ssm.forms import Form
from models.ssm.kernel import Modes, discretise
from models.ssm.s4d import initial_eigenvalues

LENGTHS = (1, 7, 64, 100, 1024, 4096, 16384)
NAMES = ("y", "x", "log_dt", "A_re", "A_im", "C_re", "C_im", "D")  # the output, then gradients
TOLERANCES = {torch.float32: (5e-6, 5e-6), torch.bfloat16: (3e-3, 1e-2)}  # of the output, of gradients


class Case(NamedTuple):
    length: int
    batch: int = 2
    width: int = 3
    modes: int = 4
    directions: int = 2
    streams: int = 2

    def __str__(self) -> str:
        join = "concat" if self.streams == 2 else "sum" if self.directions == 2 else "forward"
        return f"L={self.length} B={self.batch} D={self.width} N={2 * self.modes} {join}"


class Problem(NamedTuple):
    dy: Tensor  # (B, L, streams * H)
    inputs: tuple[Tensor, ...]  # x (B, L, H); log dt, A, C by direction; D by stream: as `NAMES`


def problem(case: Case, dtype: torch.dtype, device: str = "cpu") -> Problem:
    """Parameters as a fresh layer draws them, random sequences."""
    generator = torch.Generator().manual_seed(sum(case))
    real, imaginary = initial_eigenvalues("lin", 2 * case.modes)
    shape = (case.directions, case.width, case.modes)
    log_dt = torch.empty(shape[:2]).uniform_(-6.9, -2.3, generator=generator)
    A = [part.expand(shape) * torch.empty(shape).uniform_(0.7, 1.4, generator=generator) for part in (real, imaginary)]
    C = [torch.randn(shape, generator=generator) for _ in range(2)]
    D = torch.randn(case.streams, case.width, generator=generator)
    x = torch.randn(case.batch, case.length, case.width, generator=generator)
    dy = torch.randn(case.batch, case.length, case.streams * case.width, generator=generator)
    wide = torch.promote_types(dtype, torch.float32)
    inputs = (x.to(dtype), *(p.to(wide) for p in (log_dt, *A, *C, D)))
    return Problem(dy.to(dtype).to(device), tuple(p.to(device) for p in inputs))


def modes_of(p: Problem, inputs: tuple[Tensor, ...]) -> Modes:
    """What the operator is given, in float64 for the chain rule and rounded as the operator's inputs are.

    Rounding is left out of the comparison: at a step of a third of a turn it alone makes 1e-5 in a thousand steps.
    """
    log_dt, a_re, a_im, c_re, c_im = (part.double() for part in inputs[1:6])
    exact = discretise(log_dt, (a_re, a_im), (c_re, c_im), "zoh")
    dtype = p.inputs[1].dtype
    return Modes(*(part + (part.to(dtype).double() - part).detach() for part in exact))


def textbook(p: Problem) -> list[Tensor]:
    """The output and all gradients in float64, channel by channel: the matrix of powers is large."""
    inputs = tuple(x.double().requires_grad_() for x in p.inputs)
    x, D = inputs[0], inputs[-1]
    outputs, streams = [], p.dy.double().unflatten(-1, D.shape)
    for h in range(x.shape[-1]):
        at = slice(h, h + 1)
        modes = modes_of(p, (x, *(part[:, at] for part in inputs[1:6])))
        y = core.textbook(x[..., at], modes, D[:, at])
        (y * streams[..., h]).sum().backward()
        outputs.append(y.detach())
    return [torch.stack(outputs, dim=-1).flatten(2), *(x.grad for x in inputs if x.grad is not None)]


def computed(p: Problem) -> list[Tensor]:
    """The same by the operator, in the dtypes given."""
    inputs = tuple(x.detach().requires_grad_() for x in p.inputs)
    y = core.s4d(inputs[0], *(part.to(p.inputs[1].dtype) for part in modes_of(p, inputs)), inputs[-1])
    return [y.detach(), *torch.autograd.grad(y, inputs, p.dy)]


@contextmanager
def forced(form: Form) -> Iterator[None]:
    """One form for every sequence, on any device."""
    default, forms.choose = forms.choose, lambda u, modes: form
    try:
        yield
    finally:
        forms.choose = default


def errors(form: Form, p: Problem, expected: list[Tensor]) -> dict[str, float]:
    with forced(form):
        actual = computed(p)
    return {name: _error(got, wanted) for name, got, wanted in zip(NAMES, actual, expected, strict=True)}


def excess(found: dict[str, float], dtype: torch.dtype) -> list[str]:
    """What is beyond the tolerances, NaN included, in words; nothing if all is well."""
    output, gradient = TOLERANCES[dtype]
    limits = {name: output if name == "y" else gradient for name in found}
    return [f"{name} {error:.1e} > {limits[name]:.1e}" for name, error in found.items() if not error <= limits[name]]


def _error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def table(device: str, able: list[Form], cases: dict[torch.dtype, list[Case]]) -> Iterator[str]:
    """Markdown rows: errors of the output and of each gradient."""
    yield "| form | dtype | case | " + " | ".join(NAMES) + " | |"
    yield "|---" * (len(NAMES) + 4) + "|"
    for dtype, those in cases.items():
        for case in those:
            p = problem(case, dtype, device)
            expected = textbook(p)
            for form in able:
                try:
                    found = errors(form, p, expected)
                except Exception as refusal:  # the other forms are still checked
                    reason = next(iter(str(refusal).splitlines()), "").replace("|", "/")
                    said = f"{type(refusal).__name__}: {reason}"
                    yield f"| {form.name.lower()} | {str(dtype)[6:]} | {case} | {' | ' * (len(NAMES) - 1)} | {said} |"
                    continue
                cells = " | ".join(f"{error:.1e}" for error in found.values())
                verdict = "; ".join(excess(found, dtype)) or "within"
                yield f"| {form.name.lower()} | {str(dtype)[6:]} | {case} | {cells} | {verdict} |"


def main() -> None:
    torch.set_num_threads(1)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    able = [Form.CONVOLUTION, Form.CHUNKED] + [Form.FUSED] * interpreted
    for line in table("cpu", able, {torch.float32: [Case(length) for length in LENGTHS[:5]]}):
        print(line, flush=True)


if __name__ == "__main__":
    main()
