"""The optimiser of a run: AdamW by parameter groups, its rate, the clipping of gradients, and reduced precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models import Denoiser
from study.config import TrainConfig
from study.provenance import cpu_features

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU_UNITS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


def new_optimizer(network: Denoiser, config: TrainConfig) -> torch.optim.AdamW:
    groups = [
        {
            "params": group.parameters,
            "lr": config.lr * group.lr_scale,
            "lr_scale": group.lr_scale,
            "weight_decay": config.weight_decay if group.weight_decay else 0.0,
        }
        for group in network.parameter_groups()
        if group.parameters
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def moment_shapes(optimizer: torch.optim.AdamW) -> dict[str, tuple[int, ...]]:
    """Shapes of the optimiser's tensors after its first step, by their names in a checkpoint."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shapes: dict[str, tuple[int, ...]] = {}
    for index, parameter in enumerate(parameters):
        shape = tuple(parameter.shape)
        shapes |= {
            f"optimizer/{index}/{key}": s for key, s in (("step", ()), ("exp_avg", shape), ("exp_avg_sq", shape))
        }
    return shapes


def clip_gradients(gradients: list[Tensor], largest: float, add: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Scale all gradients down to a joint norm of `largest` (0: leave them); the norm they had comes back.

    Where each rank has only its shards of them, `add` sums the squares of their norms over ranks.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if add is not None:
        norm = add(norm.square()).sqrt()
    # Where reading the norm is free, a pass over the gradients can be saved; an accelerator would have to wait.
    is_small = norm.device.type == "cpu" and norm + 1e-6 <= largest
    if largest and not is_small:
        torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1))
    return norm


def learning_rate(config: TrainConfig, images: int) -> float:
    """Linear warm-up, then constant or a half cosine down to zero at the last image."""
    if images < config.warmup:
        return config.lr * (images + config.batch) / (config.warmup + config.batch)
    if config.schedule == "constant":
        return config.lr
    progress = (images - config.warmup) / (config.images - config.warmup)
    return config.lr * (1 + math.cos(math.pi * progress)) / 2


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse reduced precision on CPUs that only emulate it: there it is a hundred times slower, not faster."""
    if precision in CPU_UNITS and device.type == "cpu" and not CPU_UNITS[precision] & cpu_features():
        raise ValueError(
            f"train.precision={precision!r} is not valid on this CPU: must be fp32, as it has no {precision} units "
            f"({' or '.join(sorted(CPU_UNITS[precision]))}) and would emulate them many times slower"
        )
