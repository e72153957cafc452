"""Every registered backbone answers the conformance questions; toys show that liars do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import models.denoiser
from models import Denoiser, DenoiserConfig, Macs, backbones, named_config, register
from models import macs as cost
from models.denoiser import require
from tests.models import conformance

SHIPPED = sorted(backbones())
Question = Callable[[str, DenoiserConfig], None]


@pytest.mark.parametrize("question", conformance.QUESTIONS, ids=lambda asked: asked.__name__)
@pytest.mark.parametrize("backbone", SHIPPED)
def test_backbone_conforms(backbone: str, question: Question) -> None:
    question(f"{backbone}-tiny", named_config(f"{backbone}-tiny"))


@pytest.mark.parametrize("question", conformance.QUESTIONS, ids=lambda asked: asked.__name__)
@pytest.mark.parametrize("backbone", SHIPPED)
def test_backbone_conforms_unconditional_rectangular_two_channel(backbone: str, question: Question) -> None:
    config = replace(named_config(f"{backbone}-tiny"), size=(8, 16), channels=2, classes=0, learn_sigma=True)
    question(f"{backbone}-tiny", config)


@dataclass(frozen=True, kw_only=True)
class ToyConfig(DenoiserConfig):
    """A whole backbone in thirty lines, to show how little a new one needs."""

    width: int = 16

    def check(self) -> None:
        require(self.width > 0, "width", self.width, "a positive integer")

    def tokens(self, size: tuple[int, int] | None = None) -> int:
        height, width = size or self.size
        return height * width

    def macs(self, size: tuple[int, int] | None = None) -> Macs:
        pixels, width = self.tokens(size), self.width
        encode, decode = cost.linear(self.channels, pixels, width), cost.linear(self.out_channels, width, pixels)
        mix = cost.linear(1, self.channels * width, self.out_channels * width)
        return cost.linear(1, 1, width) + encode + mix + decode


class Toy(Denoiser):
    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        pixels, width = config.tokens(), config.width
        self.time = nn.Linear(1, width)
        self.label = nn.Embedding(config.label_rows, width) if config.classes else None
        self.encode = nn.Linear(pixels, width)
        self.mix = nn.Linear(config.channels * width, config.out_channels * width)
        self.decode = nn.Linear(width, pixels)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        condition = self.time(t[:, None].to(x.dtype) / 1000)
        if self.label is not None:
            condition = condition + self.label(y)
        code = torch.tanh(self.encode(x.flatten(2)) + condition[:, None])
        mixed = self.mix(code.flatten(1)).unflatten(1, (self.config.out_channels, -1))
        return self.decode(mixed).unflatten(2, self.config.size)


class CausalToy(Toy):
    """Secretly causal: each pixel sees only those before it."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        past = x.flatten(2).cumsum(2).unflatten(2, self.config.size)
        return past.repeat(1, self.config.out_channels // self.config.channels, 1, 1) * self.mix.weight.mean()


class DeafToy(Toy):
    """Ignores the label."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return super().denoise(x, t, None if y is None else torch.zeros_like(y))


class NullTwinToy(Toy):
    """Breaks classifier-free guidance: its null class is its last class."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return super().denoise(x, t, None if y is None else y.clamp(max=self.config.classes - 1))


class StaleToy(Toy):
    """Remembers a product of its weights and never looks again."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        if not hasattr(self, "remembered"):
            self.remembered = self.decode.weight.detach().sum()
        return super().denoise(x, t, y) + self.remembered


class MixedBatchToy(Toy):
    """Lets images of a batch see each other."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return super().denoise(x - x.mean(0), t, y)


class DeadBiasToy(Toy):
    """Normalises each channel over pixels, which removes the bias before it but for rounding."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.before = nn.Conv2d(config.channels, 4, 1)
        self.norm = nn.GroupNorm(4, 4)

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        normed = self.norm(self.before(x)).mean(1, keepdim=True)
        return super().denoise(x + normed, t, y)


class MiscountedToy(Toy):
    """Does a product its config does not own up to."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.decode(self.encode(x.flatten(2)))
        return super().denoise(x, t, y)


@pytest.fixture
def as_backbone(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Denoiser]], str]:
    """Registers a toy for one test only."""
    monkeypatch.setattr(models.denoiser, "_REGISTRY", dict(models.denoiser._REGISTRY))

    def add(toy: type[Denoiser]) -> str:
        size = ToyConfig(size=(4, 4), channels=1, classes=3, learn_sigma=False)
        register("toy", sizes={"tiny": size})(toy)
        return "toy-tiny"

    return add


@pytest.mark.parametrize("question", conformance.QUESTIONS, ids=lambda asked: asked.__name__)
def test_toy_conforms_with_no_edit_elsewhere(as_backbone: Callable[[type[Denoiser]], str], question: Question) -> None:
    name = as_backbone(Toy)
    question(name, named_config(name))


@pytest.mark.parametrize(
    ("liar", "question"),
    [
        (CausalToy, conformance.asks_both_ends),
        (DeafToy, conformance.asks_time_and_label_matter),
        (NullTwinToy, conformance.asks_time_and_label_matter),
        (StaleToy, conformance.asks_checkpoint_round_trip),
        (DeadBiasToy, conformance.asks_gradient_to_every_parameter),
        (MixedBatchToy, conformance.asks_independent_images),
        (MiscountedToy, conformance.asks_macs),
    ],
    ids=lambda part: part.__name__,
)
def test_liar_is_caught(as_backbone: Callable[[type[Denoiser]], str], liar: type[Denoiser], question: Question) -> None:
    name = as_backbone(liar)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        question(name, named_config(name))


def test_a_dead_bias_has_a_gradient_of_rounding_noise(as_backbone: Callable[[type[Denoiser]], str]) -> None:
    """A question that asked for any gradient but zero would believe it; one live channel more, and it is none."""
    name = as_backbone(DeadBiasToy)
    model, batch = conformance.awake(named_config(name), name), conformance.inputs(named_config(name))
    model(*batch).square().sum().backward()
    assert 0 < model.before.bias.grad.abs().max() < 1e-3 * model.before.weight.grad.abs().max()
    with pytest.raises(AssertionError, match=r"^before\.bias has a zero gradient, but for rounding"):
        conformance.asks_gradient_to_every_parameter(name, named_config(name))
