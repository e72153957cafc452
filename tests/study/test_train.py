"""The training step against closed forms and second methods; its random numbers; its refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

import models.ssm.cache
import study.optimizer
import study.train
from models import build
from study.compose import resolve
from study.config import RunConfig
from study.data import load
from study.optimizer import check_precision, clip_gradients, learning_rate
from study.parallel import recompute_blocks
from study.train import DivergedError, Trainer, new_network

CPU = torch.device("cpu")
SMALL = ["backbone.depth=1", "backbone.width=16", "backbone.heads=2", "train.batch=8", "train.images=64"]


def config(*words: str) -> RunConfig:
    return resolve([*SMALL, "train.validate_images=6", "train.validate_bins=2", *words])


def trained(*words: str, steps: int = 3) -> Trainer:
    trainer = Trainer(config(*words), CPU)
    for _ in range(steps):
        trainer.step()
    return trainer


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trainer.network.parameters()])


def test_a_step_is_textbook_adamw() -> None:
    """Against the update written out (Loshchilov & Hutter, algorithm 2), two steps, decay and clipping included."""
    trainer = Trainer(config("train.weight_decay=0.1", "train.clip=0.5", "train.lr=1e-2"), CPU)
    network = copy.deepcopy(trainer.network)
    parameters = [p for p in network.parameters() if p.requires_grad]
    first, second = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    for step in (1, 2):
        batch = trainer.draws.batch(network, 8 * (step - 1), 8)
        x_t = trainer.process.add_noise(batch.x0, batch.t, batch.noise)
        loss = ((network(x_t, batch.t, batch.y) - batch.noise) ** 2).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            g = g * min(1.0, 0.5 / norm)
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g * g)
            p.data.mul_(1 - 1e-2 * 0.1)
            p.data -= 1e-2 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        trainer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in network.parameters()])
    torch.testing.assert_close(weights(trainer), expected, rtol=1e-4, atol=1e-6)


def test_averages_are_the_recurrence() -> None:
    trainer = Trainer(config("train.ema=[0.9,0.05]"), CPU)
    name, parameter = next((n, p) for n, p in trainer.network.named_parameters() if n.endswith("qkv.weight"))
    averages = [parameter.detach().double() for _ in range(2)]
    for step in range(4):
        trainer.step()
        for index, decay in enumerate((0.9, 0.05)):
            d = min(decay, (1 + step) / (10 + step))
            averages[index] = d * averages[index] + (1 - d) * parameter.detach().double()
    for index, expected in enumerate(averages):
        found = trainer.averages[index].get_parameter(name).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_micro_batches_change_rounding_only() -> None:
    whole, parts = trained(), trained("machine.micro_batch=3")
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


def test_the_last_batch_ends_at_the_last_image() -> None:
    trainer = trained("train.images=20", steps=3)
    assert (trainer.images, trainer.steps) == (20, 3)


def test_two_executions_are_bit_identical() -> None:
    assert torch.equal(weights(trained()), weights(trained()))


@pytest.mark.parametrize("part", ["data", "noise", "init"])
def test_each_seed_has_an_effect(part: str) -> None:
    assert not torch.equal(weights(trained(f"seeds.{part}=5")), weights(trained()))


def test_backbones_share_their_random_numbers() -> None:
    """Common random numbers: another network, with dropout and draws of its own, sees the same batch."""
    small, other = Trainer(config(), CPU), Trainer(resolve(["backbone=unet-tiny", "train.batch=8"]), CPU)
    other.step()
    for mine, theirs in zip(
        small.draws.batch(small.network, 8, 8), other.draws.batch(other.network, 8, 8), strict=True
    ):
        assert mine is not None
        assert torch.equal(mine, theirs)


def test_every_epoch_shows_every_image_once() -> None:
    trainer = Trainer(config("data.count=10"), CPU)
    seen = [trainer.draws._indices(start, 4).tolist() for start in range(0, 20, 4)]
    order = [index for part in seen for index in part]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_about_half_of_the_images_are_flipped() -> None:
    plain = Trainer(config("data.count=1000"), CPU).draws
    flipped = Trainer(config("data.count=1000", "train.flip=true"), CPU).draws
    network = new_network(config())
    a, b = plain.batch(network, 0, 1000).x0, flipped.batch(network, 0, 1000).x0
    mirrored = (b == a.flip(-1)).flatten(1).all(1)
    assert bool((mirrored | (a == b).flatten(1).all(1)).all())
    assert 430 < int(mirrored.sum()) < 570


def test_labels_are_dropped_as_often_as_told() -> None:
    trainer = Trainer(config(), CPU)
    y = trainer.draws.batch(trainer.network, 0, 5000).y
    assert y is not None
    assert 400 < int((y == 10).sum()) < 600


@pytest.mark.parametrize(
    ("images", "constant", "cosine"),
    [(0, 8 / 40, 8 / 40), (24, 32 / 40, 32 / 40), (32, 1.0, 1.0), (48, 1.0, 0.5), (64, 1.0, 0.0)],
)
def test_learning_rates(images: int, constant: float, cosine: float) -> None:
    for schedule, expected in (("constant", constant), ("cosine", cosine)):
        train = config("train.lr=1", "train.warmup=32", f"train.schedule={schedule}").train
        assert learning_rate(train, images) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("largest", [0.0, 0.5, 100.0])
def test_clipping_agrees_with_pytorch(largest: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), ())]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in ours]
    for parameter, gradient in zip(theirs, ours, strict=True):
        parameter.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, largest or math.inf)
    torch.testing.assert_close(clip_gradients(ours, largest), expected)
    for parameter, gradient in zip(theirs, ours, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_state_space_parameters_keep_their_own_rate_and_no_decay() -> None:
    words = ["backbone=diffussm-tiny", "train.weight_decay=0.1", "train.lr=1e-3"]
    groups = Trainer(resolve(words), CPU).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1] + [0.0] * (len(groups) - 1)
    assert len(groups) > 1


def test_validation_is_the_written_out_mean() -> None:
    """Every held-out image in every bin, noise and times fixed: recomputed one image at a time."""
    trainer = trained()
    validation = trainer.validate()
    held_out = load(trainer.config.data, "heldout")
    times = trainer.process.bin_times(2, 6)
    for number in range(2):
        generator = study.train.generator(CPU, study.train.VALIDATION_SEED, "validation", number)
        noise = torch.randn(6, 1, 8, 8, generator=generator)
        losses = []
        for i in range(6):
            x0, n, t = held_out.to_float(held_out.images[i : i + 1]), noise[i : i + 1], times[number, i : i + 1]
            x_t = trainer.process.add_noise(x0, t, n)
            with torch.no_grad():
                losses.append(float(((trainer.averages[0](x_t, t, held_out.labels[i : i + 1]) - n) ** 2).mean()))
        assert validation.bins[number] == pytest.approx(sum(losses) / 6, rel=1e-5)
    assert validation.mean == pytest.approx(sum(validation.bins) / 2)
    assert validation.images == 6


def test_validation_neither_draws_nor_changes_anything() -> None:
    watched, left_alone = trained(steps=1), trained(steps=1)
    watched.validate()
    watched.step(), left_alone.step()
    assert torch.equal(weights(watched), weights(left_alone))


def test_averaging_moves_the_version_counters() -> None:
    """By which, on an accelerator, tables derived from parameters (S4D's spectra) know that they are out of date."""
    trainer = Trainer(config(), CPU)
    parameters = [p for p in trainer.averages[0].parameters() if any(p is known for known in trainer.averaged[0])]
    before = [parameter._version for parameter in parameters]
    trainer.step()
    assert len(parameters) == len(trainer.parameters)
    assert all(parameter._version > known for parameter, known in zip(parameters, before, strict=True))


@pytest.mark.parametrize("name", ["diffussm-tiny", "patchssm-tiny"])
def test_validation_forgets_tables_of_earlier_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other guard of the cache switched off, as if nothing ever told it of a change."""
    words = [f"backbone={name}", "train.batch=4", "train.lr=1e-2", "train.validate_images=4", "train.validate_bins=2"]
    trainer = Trainer(resolve(words), CPU)
    monkeypatch.setattr(models.ssm.cache, "_current", lambda entry, key, sources: True)
    trainer.validate()
    for _ in range(3):
        trainer.step()
    found = trainer.validate()
    trainer.averages[0] = copy.deepcopy(trainer.averages[0])  # copies of a cache are empty
    assert found == trainer.validate()


def test_a_validation_loss_that_is_not_finite_is_divergence() -> None:
    trainer = trained()
    next(p for p in trainer.averages[0].parameters() if p.numel() > 1).fill_(float("nan"))
    with pytest.raises(DivergedError, match="not finite in step 3"):
        trainer.validate()


def test_validation_does_not_depend_on_the_run_seed_or_batch() -> None:
    a, b = Trainer(config(), CPU), Trainer(config("seeds.noise=3", "seeds.data=4", "machine.sample_batch=4"), CPU)
    assert a.validate().mean == pytest.approx(b.validate().mean, rel=1e-6)


def test_the_loss_falls() -> None:
    trainer = Trainer(config("train.images=640", "train.batch=16", "train.lr=3e-3"), CPU)
    before = trainer.validate().mean
    while trainer.images < 640:
        trainer.step()
    assert before == pytest.approx(1.0, abs=0.1)  # a fresh network predicts zero noise
    assert trainer.validate().mean < 0.8 * before


def test_a_restored_trainer_goes_on_exactly() -> None:
    trainer = trained("train.ema=[0.9,0.99]")
    tensors = {name: tensor.clone() for name, tensor in trainer.tensors().items()}
    other = Trainer(trainer.config, CPU)
    other.restore(tensors, trainer.facts())
    trainer.step(), other.step()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in trainer.tensors().items())
    assert trainer.take_loss() == other.take_loss()


def test_tensors_that_do_not_fit_are_refused_untouched() -> None:
    trainer, fresh = trained(), Trainer(config(), CPU)
    before = weights(fresh).clone()
    tensors = trainer.tensors()
    for bad in (
        {name: value for name, value in tensors.items() if name != "loss_sum"},
        {**tensors, "network/extra": torch.zeros(2)},
        {**tensors, next(iter(tensors)): torch.zeros(2)},
        {name: value for name, value in tensors.items() if not name.startswith("optimizer/0/")},
    ):
        with pytest.raises(ValueError, match="has shape"):
            fresh.restore(bad, trainer.facts())
    assert torch.equal(weights(fresh), before)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_is_found_in_its_step(where: str) -> None:
    trainer = trained(steps=2)
    parameter = trainer.parameters[-1]
    if where == "loss":
        with torch.no_grad():
            parameter.fill_(float("nan"))
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError, match="not finite in step 3, 24 images into training") as found:
        trainer.step()
    assert (found.value.step, found.value.images) == (3, 24)


@pytest.mark.parametrize("name", ["dit-tiny", "diffussm-tiny", "patchssm-tiny", "dis-tiny", "unet-tiny"])
def test_recomputing_activations_changes_no_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = build(name)
    for parameter in network.parameters():  # zero-initialised gates would hide a wrong gradient
        parameter.data += 0.02 * torch.randn_like(parameter)
    saving = copy.deepcopy(network)
    recompute_blocks(saving)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 900.0]), torch.tensor([1, 2])
    kept: list[int] = []
    for each in (network, saving):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda v, s=sizes: (s.append(v.numel()), v)[1], lambda v: v):
            loss = (each(x, t, y) ** 2).sum()
        kept.append(sum(sizes))
        loss.backward()
    assert kept[1] < 0.6 * kept[0]
    for mine, theirs in zip(saving.parameters(), network.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_network_without_blocks_cannot_recompute() -> None:
    with pytest.raises(ValueError, match=r"machine\.checkpoint_activations=true is not valid"):
        recompute_blocks(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_emulated_precision_is_refused(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    monkeypatch.setattr(study.optimizer, "cpu_features", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(ValueError, match=f"train.precision='{precision}' is not valid on this CPU: must be fp32"):
        check_precision(precision, CPU)
    check_precision("fp32", CPU)
    check_precision(precision, torch.device("cuda"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_stays_near_fp32(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Emulated if need be: a few steps of a tiny network, whose weights and averages stay float32."""
    monkeypatch.setattr(study.train, "check_precision", lambda precision, device: None)
    full, reduced = trained(), trained(f"train.precision={precision}")
    assert weights(reduced).dtype == torch.float32
    assert not torch.equal(weights(full), weights(reduced))
    assert reduced.take_loss()["loss"] == pytest.approx(full.take_loss()["loss"], rel=0.02)


def test_batches_index_the_resident_set() -> None:
    trainer = Trainer(config(), CPU)
    batch = trainer.draws.batch(trainer.network, 0, 4)
    index = trainer.draws._indices(0, 4)
    assert torch.equal(batch.x0, trainer.draws.images.to_float(trainer.draws.images.images[index]))


@pytest.mark.parametrize("part", [slice(0, 3), slice(3, 8), slice(7, 8)])
def test_a_part_of_a_batch_is_what_it_was_in_the_whole(part: slice) -> None:
    draws = Trainer(config("train.flip=true", "data.count=11"), CPU).draws
    network = new_network(config())
    for mine, whole in zip(draws.batch(network, 16, 8, part), draws.batch(network, 16, 8), strict=True):
        assert mine is not None
        assert whole is not None
        assert torch.equal(mine, whole[part])
