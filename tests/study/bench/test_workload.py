"""What is timed is what it is called."""

from __future__ import annotations

import pytest
import torch

from models.ssm.core import textbook
from models.ssm.s4d import S4D
from study.bench.cell import Worker, answer
from study.bench.config import Cell, Layer, Network, Spin, cell_from_tree
from study.bench.workload import inputs, make_work, nudged, phases_of
from study.cost.tracer import network
from study.strict import to_tree

TINY = {name: Network(name, (8, 8)) for name in ("dit-tiny", "diffussm-tiny", "dis-tiny", "unet-tiny")}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("mode", ["forward", "train", "sample"])
def test_every_family_runs_in_every_mode(name: str, mode: str) -> None:
    cell = Cell(TINY[name], mode, batch=2, steps=2)
    work, _ = make_work(cell)
    assert tuple(work) == phases_of(cell)
    for phase in work.values():
        phase()


def test_a_call_is_the_networks_own_and_not_zero() -> None:
    cell = Cell(TINY["dit-tiny"], batch=3)
    work, _ = make_work(cell)
    output = work["call"]()
    torch.manual_seed(0)
    model = nudged(network(TINY["dit-tiny"].config)).eval()
    torch.testing.assert_close(output, model(*inputs(model.config, 3, torch.device("cpu"))))
    assert output.abs().max() > 1e-3


def test_a_sample_calls_the_network_once_per_step_and_guidance_doubles_the_batch() -> None:
    seen: list[int] = []
    for guidance in (1.0, 4.0):
        work, _ = make_work(Cell(TINY["dit-tiny"], "sample", batch=2, steps=5, guidance=guidance))
        handle = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, given: seen.append(len(given[0])) if type(module).__name__ == "DiT" else None
        )
        work["sample"]()
        handle.remove()
    assert seen == [2] * 5 + [4] * 5


def test_a_training_step_changes_weights_in_its_last_phase_only() -> None:
    work, _ = make_work(Cell(TINY["dit-tiny"], "train", batch=2))
    forward, backward, optimiser = work.values()
    optimizer = next(c.cell_contents for c in optimiser.__closure__ if isinstance(c.cell_contents, torch.optim.AdamW))
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in weights]
    forward()
    backward()
    assert all(p.grad is not None for p in weights)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    optimiser()
    assert all(p.grad is None for p in weights)
    assert not any(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_the_textbook_layer_is_the_same_function_as_the_fast_one() -> None:
    outputs = [make_work(Cell(Layer(form, 96, 16, 8)))[0]["call"]() for form in ("s4d", "s4d-textbook")]
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    assert outputs[0].shape == (1, 96, 32)
    torch.manual_seed(0)
    layer = S4D(16, 8).eval()
    u = torch.randn(1, 96, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(outputs[1], textbook(u, layer.modes(), layer.D))


@pytest.mark.parametrize("form", ["s4d", "s4d-textbook", "attention"])
def test_layers_train_without_an_optimiser(form: str) -> None:
    work, _ = make_work(Cell(Layer(form, 12, 16, 4), "train"))
    for phase in work.values():
        phase()
    assert tuple(work) == ("forward", "backward")


def test_macs_of_a_call_follow_its_batch_and_mode() -> None:
    macs = TINY["dit-tiny"].config.macs().total / 1e9
    calls = [Cell(TINY["dit-tiny"], mode, batch=3, steps=7, guidance=g).gmacs() for mode, g in
             (("forward", 1.0), ("train", 1.0), ("sample", 1.0), ("sample", 2.0))]  # fmt: skip
    assert calls == pytest.approx([3 * macs, 9 * macs, 21 * macs, 42 * macs])
    assert Cell(Spin(1)).gmacs() is None


def test_attention_layer_macs_are_torchs_own_count() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    layer = Layer("attention", 32, 64)
    work, _ = make_work(Cell(layer))
    with FlopCounterMode(display=False) as counter:
        work["call"]()
    assert counter.get_total_flops() == 2 * layer.macs().total


@pytest.mark.parametrize("subject", [TINY["dit-tiny"], Layer("s4d", 64, 8), Spin(3)])
def test_a_cell_survives_the_trip_to_its_process_and_keeps_its_id(subject: object) -> None:
    cell = Cell(subject, batch=2)
    again = cell_from_tree(to_tree(cell))
    assert (again, again.id) == (cell, cell.id)
    assert Cell(subject, batch=3).id != cell.id


def test_what_does_not_fit_is_an_answer() -> None:
    cell = Cell(Layer("attention", 64, 8), batch=10**12)
    told = answer(lambda: make_work(cell)[1])
    assert list(told) == ["out_of_memory"]


def test_a_worker_answers_every_question_there_is_on_a_cpu() -> None:
    worker = Worker(Cell(Spin(1)), "untouched")
    opened = worker.open(0.1)
    assert opened["facts"]["threads"] == "1"
    assert {"commit", "cpu", "torch", "pinned", "allocator"} <= opened["facts"].keys()
    (sample, *_) = worker.block(1, 0.0)["samples"]
    assert len(sample) == 3
    assert min(sample) > 0
    assert worker.energy(0.1) == {}  # no counter: no number
    assert worker.memory()["process_peak_mib"] > 10
