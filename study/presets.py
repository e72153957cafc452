"""Named presets: what `train=quick` and its like mean. Each is an instance of its section's dataclass."""

from __future__ import annotations

from study.config import LogConfig, MachineConfig, SampleConfig, ScoreConfig, TrainConfig
from study.diffusion import FlowConfig, GaussianConfig, SamplerConfig

PROCESS: dict[str, GaussianConfig | FlowConfig] = {
    "cosine": GaussianConfig(schedule="cosine", variance="fixed_small"),
    "dit": GaussianConfig(),  # linear schedule, learned variance, hybrid loss
    "flow": FlowConfig(),
}

TRAIN: dict[str, TrainConfig] = {
    # 300 steps: where backbones of digits8 size can be told apart by validation loss, in about 30 core-seconds.
    "quick": TrainConfig(images=300 * 64, lr=2e-3, validate_every=50 * 64),
    # Glyphs in about 30 core-minutes.
    "standard": TrainConfig(images=200_000, lr=2e-3, warmup=6_400, schedule="cosine", validate_every=10_000),
    # DiT's and DiffuSSM's: 400,000 steps of 256.
    "paper": TrainConfig(
        images=400_000 * 256,
        batch=256,
        lr=1e-4,
        clip=0.0,
        ema=(0.9999,),
        flip=True,
        precision="bf16",
        validate_every=5_000 * 256,
        validate_images=2_048,
    ),
}

SAMPLE: dict[str, SampleConfig] = {
    "grid": SampleConfig(count=100, sampler=SamplerConfig(sampler="ddim", steps="20", clip=True)),
    "flow": SampleConfig(count=100, sampler=SamplerConfig(sampler="heun", steps="20", clip=True)),
    "none": SampleConfig(count=0, sampler=SamplerConfig(sampler="ddim", steps="20", clip=True)),
}

SCORE: dict[str, ScoreConfig] = {
    "none": ScoreConfig(),
    # In the data set's own feature space: no download. Never called FID.
    "quick": ScoreConfig(metrics=("fd", "kd", "agreement")),
    # The papers' columns, for which Inception's weights must be at hand.
    "fid": ScoreConfig(metrics=("fid", "sfid", "is", "kid", "precision", "recall")),
}

MACHINE: dict[str, MachineConfig] = {"default": MachineConfig()}

LOG: dict[str, LogConfig] = {
    "default": LogConfig(),
    "sparse": LogConfig(every=64_000, checkpoint_every=640_000),  # for runs of many millions of images
}
