"""What a run is: typed, frozen, strict; and its id, a hash of everything that can change its numbers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from models import DenoiserConfig, backbones
from models.denoiser import require
from study.atomic import canonical_json
from study.data import ON_DISK, DataConfig, dataset, offered
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig, make_process
from study.strict import ConfigError, convert, dotted, from_tree, nearest, to_tree, unknown_key

PROTOCOL = 1  # raise when the same config would give other numbers for a reason no other version covers

PROCESSES: dict[str, type] = {"gaussian": GaussianConfig, "flow": FlowConfig}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every count and interval is in images."""

    images: int  # to train on, repeats included
    batch: int = 64  # images per optimiser step
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0  # images over which the rate rises from zero
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # largest gradient norm; 0: not clipped
    ema: tuple[float, ...] = (0.999,)  # decays per step; the first one's weights are validated and sampled
    flip: bool = False  # mirror half of the images
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    validate_every: int = 0  # 0: only at the end
    validate_images: int = 512  # of the held-out split, or all it has
    validate_bins: int = 10  # equal shares of the way from clean to noise

    def __post_init__(self) -> None:
        for name in ("images", "batch", "validate_images", "validate_bins"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive integer")
        for name in ("warmup", "validate_every"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "0 or more")
        require(math.isfinite(self.lr) and self.lr > 0, "lr", self.lr, "above 0")
        require(self.warmup < self.images, "warmup", self.warmup, f"below train.images={self.images}")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers in [0, 1)")
        distinct = len(set(self.ema)) == len(self.ema) > 0
        require(
            distinct and all(0 <= decay < 1 for decay in self.ema),
            "ema",
            self.ema,
            "distinct decays in [0, 1), or more",
        )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Images made from the trained weights; the same noise and labels for every backbone."""

    count: int = 100  # 0: none
    seed: int = 0
    labels: Literal["balanced", "random"] = "balanced"  # classes in turn, or each drawn on its own
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        require(self.count >= 0, "count", self.count, "0 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is computed of the samples. It changes no other number, so it is not part of a run's id."""

    metrics: tuple[str, ...] = ()  # names as in docs/scores.md; `fd`, `kd`, `agreement` mean the data set's own space
    inception_weights: str = ""  # a file; "": torch's hub cache

    def __post_init__(self) -> None:
        require(len(set(self.metrics)) == len(self.metrics), "metrics", self.metrics, "distinct names")


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """One seed each for the order of the data, the noise and the initial weights."""

    data: int
    noise: int
    init: int

    def __post_init__(self) -> None:
        for seed in fields(self):
            require(getattr(self, seed.name) >= 0, seed.name, getattr(self, seed.name), "0 or more")


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """How the work is done here: changes the speed, and the results by no more than rounding."""

    device: str = "auto"
    threads: int = 0  # 0: as PyTorch chooses
    micro_batch: int = 0  # images per forward pass, gradients accumulated; 0: the whole batch
    sample_batch: int = 250
    compile: Literal[False, True, "reduce-overhead", "max-autotune", "graph"] = False  # docs/kernels.md: Launching
    checkpoint_activations: bool = False  # recompute each block in the backward pass: less memory, a third slower
    shard: bool = False  # of several ranks each has only a part of weights, averages and moments (FSDP2): less memory
    write_behind: bool = True  # write checkpoints while training goes on: a copy of one in the host's memory
    peak_tflops: float = 0.0  # of one device in this precision, if you know: utilisation (MFU) is a share of that
    measure_peak: bool = False  # measure it at the start instead, a few seconds long
    keep_freed_memory: bool = True  # glibc only

    def __post_init__(self) -> None:
        require(self.threads >= 0, "threads", self.threads, "0 (as PyTorch chooses) or more")
        require(self.micro_batch >= 0, "micro_batch", self.micro_batch, "0 (the whole batch) or more")
        require(self.sample_batch > 0, "sample_batch", self.sample_batch, "a positive integer")
        known = math.isfinite(self.peak_tflops) and self.peak_tflops >= 0
        require(known, "peak_tflops", self.peak_tflops, "0 (not known) or more")
        once = not (self.measure_peak and self.peak_tflops)
        require(once, "measure_peak", self.measure_peak, f"false, as peak_tflops={self.peak_tflops:g} states it")
        # Gradients that one pass leaves would lie in memory which the replay of the next writes over.
        whole = not isinstance(self.compile, str) or not self.micro_batch
        require(whole, "micro_batch", self.micro_batch, f"0 (the whole batch) with compile={self.compile}")
        require(not (self.shard and self.compile), "shard", self.shard, "false with compile=true: not tried together")
        recomputes = self.checkpoint_activations and self.compile == "graph"
        require(not recomputes, "checkpoint_activations", True, "false with compile=graph, which no generator may move")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Intervals in images."""

    every: int = 640
    checkpoint_every: int = 6400
    keep_every: int = 0  # also make, and keep, a checkpoint at every multiple of this; 0: only the last two
    save_samples: bool = False  # all samples as lossless uint8, not only the grid
    tensorboard: bool = False
    wandb: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "checkpoint_every"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive integer")
        require(self.keep_every >= 0, "keep_every", self.keep_every, "0 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, fully resolved."""

    backbone: DenoiserConfig
    data: DataConfig
    process: GaussianConfig | FlowConfig
    train: TrainConfig
    sample: SampleConfig
    score: ScoreConfig
    seed: int
    seeds: Seeds
    machine: MachineConfig
    log: LogConfig
    results: str


WITHOUT_MEANING = ("score", "seed", "machine", "log", "results")  # `seed` acts through `seeds` alone


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """The run behind a plain tree: composed from presets, read from a file, or expanded by a sweep."""
    sections = [section.name for section in fields(RunConfig)]
    for key in tree:
        if key not in sections:
            raise unknown_key(str(key), sections, [*sections, *_every_key(tree)])
    missing = [name for name in sections if name not in tree]
    if missing:
        raise ConfigError(f"missing key{'s' * (len(missing) > 1)} {', '.join(missing)}")
    data = from_tree(DataConfig, {**dict.fromkeys(ON_DISK), **_given(tree["data"], "data")}, "data")
    process = _process(tree["process"])
    seed = convert(int, tree["seed"], "seed")
    config = RunConfig(
        backbone=_backbone(tree["backbone"], data, process),
        data=data,
        process=process,
        train=from_tree(TrainConfig, tree["train"], "train"),
        sample=from_tree(SampleConfig, tree["sample"], "sample"),
        score=from_tree(ScoreConfig, tree["score"], "score"),
        seed=seed,
        seeds=from_tree(Seeds, {**_all_seeds(seed), **_given(tree["seeds"], "seeds")}, "seeds"),
        machine=from_tree(MachineConfig, tree["machine"], "machine"),
        log=from_tree(LogConfig, tree["log"], "log"),
        results=convert(str, tree["results"], "results"),
    )
    _check_together(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The plain tree `from_dict` reads back to an equal config."""
    tree: dict[str, Any] = to_tree(config)
    tree["backbone"] = {"name": backbone_name(config.backbone), **tree["backbone"]}
    tree["process"] = {"name": process_name(config.process), **tree["process"]}
    return tree


def run_id(config: RunConfig) -> str:
    """16 hex digits: equal for equal meaning, whatever the spelling; different for any other meaning."""
    return hashlib.sha256(canonical_json(meaning(config)).encode()).hexdigest()[:16]


def meaning(config: RunConfig) -> dict[str, Any]:
    """All of a config that can change the numbers, and the versions of the code that turns it into them."""
    tree = {key: value for key, value in to_dict(config).items() if key not in WITHOUT_MEANING}
    tree["backbone"] = {key: value for key, value in tree["backbone"].items() if key not in config.backbone.idle()}
    tree["data"] = config.data.meaning()
    versions = {
        "backbone": backbones()[backbone_name(config.backbone)].denoiser.version,
        "data": dataset(config.data.name).version,
        "protocol": PROTOCOL,
    }
    return {**tree, "versions": versions}


def backbone_name(config: DenoiserConfig) -> str:
    """The architecture a config belongs to."""
    return next(name for name, backbone in backbones().items() if backbone.config is type(config))


def process_name(config: GaussianConfig | FlowConfig) -> str:
    """The kind of process a config belongs to."""
    return next(name for name, kind in PROCESSES.items() if kind is type(config))


def dictated_by_data(data: DataConfig, learns_variance: bool) -> dict[str, Any]:
    """The backbone's fields that are not its own to choose."""
    offer = offered(data)
    return {
        "size": offer.size,
        "channels": offer.channels,
        "classes": offer.classes,
        "latent_factor": offer.latent_factor,
        "learn_sigma": learns_variance,
    }


def _backbone(given: Any, data: DataConfig, process: GaussianConfig | FlowConfig) -> DenoiserConfig:
    tree, name = _split_name(given, "backbone", list(backbones()))
    dictated = dictated_by_data(data, _learns_variance(process))
    for key, value in dictated.items():
        if key in tree and to_tree(tree[key]) != to_tree(value):
            raise ConfigError(
                f"backbone.{key}={tree[key]!r} does not fit data={data.name} and its process: "
                f"must be {to_tree(value)!r}, or left out"
            )
    return from_tree(backbones()[name].config, {**tree, **dictated}, "backbone")


@cache  # a thousand points share a process or two, and making one computes its schedule
def _learns_variance(process: GaussianConfig | FlowConfig) -> bool:
    return make_process(process).learns_variance


@cache
def _sampler_complaint(process: GaussianConfig | FlowConfig, sampler: SamplerConfig) -> str:
    try:
        make_process(process).check_sampler(sampler)
    except ValueError as error:
        return str(error)
    return ""


def _goes_together(process: GaussianConfig | FlowConfig, sampler: SamplerConfig) -> str:
    """Changing the process alone leaves a sampler of the other kind: say what goes with what."""
    if sampler.sampler in make_process(process).samplers:
        return ""
    if isinstance(process, FlowConfig):
        return "; process=flow goes with sample=flow"
    return f"; {sampler.sampler} samples process=flow only"


def _process(given: Any) -> GaussianConfig | FlowConfig:
    tree, name = _split_name(given, "process", list(PROCESSES))
    return from_tree(PROCESSES[name], tree, "process")


def _split_name(given: Any, where: str, known: list[str]) -> tuple[dict[str, Any], str]:
    tree = _given(given, where)
    if "name" not in tree:
        raise ConfigError(f"missing key {where}.name: one of {', '.join(known)}")
    name = tree.pop("name")
    if name not in known:
        raise ConfigError(f"{where}.name={name!r} is not valid{nearest(str(name), known)}")
    return tree, name


def _given(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}={tree!r} is not valid: must be a mapping")
    return {str(key): value for key, value in tree.items() if value is not None or where != "seeds"}


def _all_seeds(seed: int) -> dict[str, int]:
    return {part.name: seed for part in fields(Seeds)}


def _every_key(tree: Mapping[str, Any]) -> list[str]:
    """Dotted keys one level down, to suggest `train.lr` to whoever wrote `lr`."""
    return [dotted(section, key) for section, part in tree.items() if isinstance(part, Mapping) for key in part]


def _check_together(config: RunConfig) -> None:
    """What is valid alone and impossible together."""
    if not config.results:
        raise ConfigError("results='' is not valid: must be a folder")
    sampler = config.sample.sampler
    if complaint := _sampler_complaint(config.process, sampler):
        raise ConfigError(f"sample.sampler.{complaint}{_goes_together(config.process, sampler)}")
    if sampler.guidance != 1 and not config.backbone.has_null_class:
        raise ConfigError(
            f"sample.sampler.guidance={sampler.guidance} is not valid: must be 1, "
            "as this backbone has no null class (an unconditional data set, or backbone.class_dropout=0)"
        )
    if config.machine.shard and config.train.precision == "fp16":
        raise ConfigError(
            "machine.shard=true is not valid: must be false with train.precision=fp16, whose loss scale a rank would "
            "judge by its part alone; bf16 has none"
        )
    if config.machine.compile == "graph" and config.train.precision == "fp16":
        raise ConfigError(
            "machine.compile='graph' is not valid: must be false or true with train.precision=fp16, whose steps are "
            "skipped by the host; bf16 skips none"
        )
    if config.machine.micro_batch > config.train.batch:
        raise ConfigError(
            f"machine.micro_batch={config.machine.micro_batch} is not valid: "
            f"must be at most train.batch={config.train.batch}"
        )
