"""Mirrors of the curve for those who like to watch elsewhere: TensorBoard, Weights & Biases. Files stay the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from study.config import LogConfig, RunConfig, to_dict
from study.strict import ConfigError

Track = Callable[[int, Mapping[str, float]], None]
"""(images, values by name)"""


def check_trackers(config: LogConfig) -> None:
    """Refuse a tracker that is not installed, before anything starts."""
    for name in ("tensorboard", "wandb"):
        if getattr(config, name) and find_spec(name) is None:
            raise ConfigError(f"log.{name}=true needs the package {name}: pip install {name}, or leave it out")


def open_trackers(config: RunConfig, identity: str, folder: Path, images: int, closing: ExitStack) -> list[Track]:
    """The trackers asked for; `images` is where this attempt continues."""
    trackers: list[Track] = []
    if config.log.tensorboard:
        trackers.append(_tensorboard(folder / "tensorboard", images, closing))
    if config.log.wandb:
        trackers.append(_wandb(config, identity, folder, closing))
    return trackers


def _tensorboard(folder: Path, images: int, closing: ExitStack) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder), purge_step=images + 1)  # points at `images` are before the checkpoint
    closing.callback(writer.close)

    def track(images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, images)

    return track


def _wandb(config: RunConfig, identity: str, folder: Path, closing: ExitStack) -> Track:
    import wandb  # type: ignore[import-not-found,unused-ignore]

    mirror: Any = wandb.init(
        project="diffusion-backbone-study", id=identity, resume="allow", dir=str(folder), config=to_dict(config)
    )
    closing.callback(mirror.finish)
    return lambda images, values: mirror.log({**values, "images": images})
