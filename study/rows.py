"""The rows a run leaves by itself: validation loss, cost on paper, and speed here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

from study.atomic import canonical_json
from study.config import PROTOCOL, RunConfig, run_id, to_dict
from study.data import COUNTS, dataset
from study.progress import peak_memory_mib
from study.results import Row
from study.train import VALIDATION_SEED, Trainer, Validation
from study.utilisation import TRAINING_FLOPS_PER_MAC, Peak, utilisation

COST_PROTOCOL = "cost-1"  # 1 MAC is one multiply-accumulate; training is 3 forward passes of 2 operations per MAC
SPEED_PROTOCOL = "speed-1"  # wall-clock training, without validation and checkpoints: compare on one machine only
PROVENANCE = ("commit", "dirty", "torch", "device", "cpu", "threads", "ranks", "precision", "allocator", "train_data")


def run_rows(
    config: RunConfig,
    trainer: Trainer,
    validations: Mapping[float, Validation],
    seconds: float,
    facts: Mapping[str, str],
    peak: Peak | None = None,
) -> list[Row]:
    """All rows of a finished run; `seconds` is the time it trained, `peak` what a device can do if that is known."""
    identity = run_id(config)
    origin = {key: facts[key] for key in PROVENANCE}

    def row(
        metric: str,
        value: float,
        units: str,
        protocol: str,
        n: int = 1,
        interval: tuple[float, float] | None = None,
    ) -> Row:
        return Row(
            run=identity,
            metric=metric,
            value=value,
            units=units,
            n=n,
            interval=interval,
            protocol=protocol,
            provenance=origin,
        )

    def validation_rows() -> Iterator[Row]:
        for decay, validation in validations.items():
            protocol = validation_protocol(config, decay)
            reach = 1.96 * validation.standard_error
            interval = (validation.mean - reach, validation.mean + reach)
            yield row("val_loss", validation.mean, "", protocol, validation.images, interval)
            for number, loss in enumerate(validation.bins):
                yield row(f"val_loss_bin{number}", loss, "", protocol, validation.images)

    def utilisation_rows(speed: float) -> Iterator[Row]:
        """Of a run whose number of ranks never changed."""
        share = utilisation(config, speed, peak, trainer.ranks.world_size)
        if share is not None and peak is not None and facts["ranks"] == str(trainer.ranks.world_size):
            found = row("mfu", share, "", SPEED_PROTOCOL)
            yield replace(found, provenance={**origin, "peak_tflops": f"{peak.tflops:.4g}", "peak": peak.origin})

    macs = config.backbone.macs().total
    train = config.train
    speed = train.images / max(seconds, 1e-9)
    return [
        *validation_rows(),
        row("params", sum(p.numel() for p in trainer.network.parameters()), "", COST_PROTOCOL),
        row("gmacs", macs / 1e9, "GMAC/image", COST_PROTOCOL),
        row("train_pflops", TRAINING_FLOPS_PER_MAC * macs * train.images / 1e15, "PFLOP", COST_PROTOCOL),
        row("images_per_second", speed, "images/s", SPEED_PROTOCOL),
        row("train_seconds", seconds, "s", SPEED_PROTOCOL),
        row("peak_mib", peak_memory_mib(trainer.device), "MiB", SPEED_PROTOCOL),
        *utilisation_rows(speed),
    ]


def validation_protocol(config: RunConfig, decay: float) -> str:
    """An id shared by exactly those validation losses that can be compared."""
    tree = to_dict(config)
    shared = {
        "data": {key: value for key, value in config.data.meaning().items() if key not in COUNTS},
        "data_version": dataset(config.data.name).version,
        "process": tree["process"],
        "images": min(config.train.validate_images, config.data.images("heldout")),
        "bins": config.train.validate_bins,
        "noise": VALIDATION_SEED,
        "ema": decay,
        "version": PROTOCOL,
    }
    digest = hashlib.sha256(canonical_json(shared).encode()).hexdigest()[:8]
    return f"val-{config.data.name}-{digest}"
