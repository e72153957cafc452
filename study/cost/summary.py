"""What one backbone costs on paper: parameters, MACs per part, and what follows from them for a run and a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from models.denoiser import DenoiserConfig, named_config, require
from models.macs import Macs
from study.cost.tracer import on_meta

BACKWARD = 2  # a backward pass is two forward passes by convention; `tracer.training_macs` counts it exactly
FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights. What is called `params` anywhere is the total, as in the rows of runs.

    DiT's position embeddings are a parameter that is not trained; tables held as buffers are none.
    """

    total: int
    trainable: int


@dataclass(frozen=True)
class Cost:
    """One network at one resolution. MACs are per image and denoiser call unless the name says otherwise."""

    name: str
    config: DenoiserConfig
    parameters: Parameters
    macs: Macs

    @property
    def pixels(self) -> int:
        """Side of the images, before any autoencoder."""
        return self.config.size[0] * self.config.latent_factor

    @property
    def tokens(self) -> int:
        return self.config.tokens()

    @property
    def training_macs(self) -> int:
        """Forward and backward, per image."""
        return (1 + BACKWARD) * self.macs.total

    def run_macs(self, images: float) -> float:
        """images x MACs: what the papers call a run's total Gflops, without the backward pass."""
        return images * self.macs.total

    def run_training_macs(self, images: float) -> float:
        return images * self.training_macs

    def train_pflops(self, images: float) -> float:
        """True floating-point operations of a training run, in 1e15."""
        return FLOPS_PER_MAC * self.run_training_macs(images) / 1e15

    def sample_macs(self, steps: int, guided: bool) -> int:
        """One generated image: every step calls the network once, twice under guidance; kernels are made once."""
        return steps * (2 if guided else 1) * self.macs.total + self.macs.kernel


def cost(name: str, config: DenoiserConfig | None = None) -> Cost:
    """Cost a named size, or any config under a name of your choice."""
    config = named_config(name) if config is None else config
    return Cost(name, config, parameters(config), config.macs())


def parameters(config: DenoiserConfig) -> Parameters:
    """Counted on the network itself, built without memory."""
    model = on_meta(config)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Parameters(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def at_pixels(config: DenoiserConfig, pixels: int) -> DenoiserConfig:
    """The same backbone for square images of `pixels` a side."""
    factor = config.latent_factor
    require(pixels > 0 and pixels % factor == 0, "size", pixels, f"a positive multiple of latent_factor={factor}")
    return replace(config, size=(pixels // factor, pixels // factor))


def with_fields(config: DenoiserConfig, fields: Mapping[str, object]) -> DenoiserConfig:
    """The same backbone with fields replaced; an unknown one is refused by its config."""
    known = config.__dataclass_fields__
    for key in fields:
        require(key in known, "field", key, f"one of {', '.join(known)}")
    return replace(config, **fields)  # type: ignore[arg-type]
