"""What a plan will cost before it runs: exactly on paper, and in time and disk by what this machine did before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from models.denoiser import DenoiserConfig
from study.config import RunConfig, backbone_name
from study.cost.memory import training_memory
from study.cost.summary import parameters
from study.data import DataConfig, offered
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig, make_process
from study.latents.files import bytes_of
from study.stated_speed import StatedSpeed

GUESSED_GMACS_PER_SECOND = 12.0  # of one CPU thread, forward and backward: what small backbones reach on AVX2
FLOAT = 4  # bytes
CHECKPOINTS = 2  # kept at a time
SMALL_FILES = 200_000  # bytes of a finished run beside its checkpoints: log, curve, rows, sample grid


@dataclass(frozen=True)
class Cost:
    """Of one run."""

    params: int
    gmacs: float  # of one image, forward
    train_pflops: float
    work: float  # GMACs in all: training, validation and sampling
    seconds: float
    disk: float  # bytes, of its own folder


@dataclass(frozen=True)
class Record:
    """Training speed of one finished run."""

    backbone: str
    gmacs_per_second: float  # of training: three times the forward pass


@dataclass(frozen=True)
class Speed:
    """GMACs per second to expect, by backbone, and what that rests on."""

    records: tuple[Record, ...]

    def of(self, backbone: str) -> float:
        own = [record.gmacs_per_second for record in self.records if record.backbone == backbone]
        known = own or [record.gmacs_per_second for record in self.records]
        return median(known) if known else GUESSED_GMACS_PER_SECOND

    def source(self, backbones: Sequence[str]) -> str:
        if not self.records:
            return f"a guess of {GUESSED_GMACS_PER_SECOND:g} GMAC/s per worker: no run is recorded on this machine yet"
        others = [name for name in backbones if not any(record.backbone == name for record in self.records)]
        told = f"what {len(self.records)} recorded runs reached on this machine"
        return told + (f"; other backbones' speed for {', '.join(others)}" if others else "")


def estimate(config: RunConfig, speed: Speed | StatedSpeed) -> Cost:
    gmacs = _macs(config.backbone) / 1e9
    work = gmacs * _forward_passes(config)
    params = count_parameters(config.backbone)
    copies = 3 + len(config.train.ema)  # weights, two moments, averages
    kept = CHECKPOINTS + (config.train.images // config.log.keep_every if config.log.keep_every else 0)
    offer = offered(config.data)
    height, width = (side * offer.latent_factor for side in offer.size)
    samples = 2 * config.sample.count * height * width * 3 if config.log.save_samples else 0  # shards, ADM's batch
    return Cost(
        params=params,
        gmacs=gmacs,
        train_pflops=6 * gmacs * config.train.images / 1e6,
        work=work,
        seconds=work / speed.of(backbone_name(config.backbone)),
        disk=kept * copies * params * FLOAT + samples + SMALL_FILES,
    )


def latent_bytes(configs: Iterable[RunConfig]) -> int:
    """Of the latents that runs are trained on, each set once."""
    sets = {config.data for config in configs if offered(config.data).latent_factor > 1}
    return sum(_latent_bytes(data) for data in sets)


def _latent_bytes(data: DataConfig) -> int:
    offer = offered(data)
    images = data.images("train") + data.images("heldout")
    height, width = offer.size
    reference = data.images("reference") * height * width * offer.latent_factor**2 * 3
    return bytes_of(images, offer.channels, offer.size, FLOAT) + reference


def _forward_passes(config: RunConfig) -> float:
    """Images through the network, a backward pass counting as two."""
    train, sample = config.train, config.sample
    heldout = min(train.validate_images, config.data.images("heldout"))
    times = len(train.ema) + (train.images // train.validate_every if train.validate_every else 0)
    guided = 2 if sample.sampler.guidance != 1 else 1
    calls = _calls(config.process, sample.sampler) * guided
    return 3 * train.images + times * heldout * train.validate_bins + sample.count * calls


@cache
def _calls(process: GaussianConfig | FlowConfig, sampler: SamplerConfig) -> int:
    return make_process(process).calls(sampler)


@cache
def _macs(config: DenoiserConfig) -> int:
    return config.macs().total


@cache
def count_parameters(config: DenoiserConfig) -> int:
    return parameters(config).total


@cache
def _memory(config: DenoiserConfig, batch: int, precision: str, averages: int) -> int:
    return training_memory(config, batch, precision, averages=averages).peak  # type: ignore[arg-type]


def needs_of(config: RunConfig) -> tuple[DenoiserConfig, int, str, int]:
    """All that a run's memory depends on: network, images at a time, precision, moving averages."""
    batch = config.machine.micro_batch or min(config.train.batch, config.train.images)
    return config.backbone, batch, config.train.precision, len(config.train.ema)


def memory_of(config: RunConfig) -> int:
    """Bytes that a run needs for its tensors."""
    return _memory(*needs_of(config))


def largest_memory(configs: Sequence[RunConfig]) -> tuple[int, RunConfig]:
    """Bytes that the most demanding run needs for its tensors; the run is picked by MACs per step."""
    most = max(configs, key=lambda config: _macs(config.backbone) * needs_of(config)[1])
    return memory_of(most), most
