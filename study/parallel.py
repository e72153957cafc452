"""One network on several ranks: whole on each with gradients averaged (DDP), or split (FSDP2, in `sharding`)."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute

from study.distributed import Ranks

SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the second is its name before torch 2.15
    if name in signature(DistributedDataParallel.__init__).parameters
)


def new_parallel(network: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The network with its gradients averaged over ranks. No buffer of ours changes in training.

    A compiled network goes inside: compiling around it would compile again for every micro-batch that waits.
    """
    ids = [device] if device.type == "cuda" else None
    options: dict[str, Any] = {SYNC_BUFFERS: False}
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **options)


def check_batch(batch: int, ranks: Ranks) -> None:
    if batch < ranks.world_size:
        raise ValueError(
            f"train.batch={batch} is not valid with {ranks.world_size} ranks: must be at least one image each"
        )


def check_splittable(network: nn.Module) -> None:
    """Refuse what FSDP2 cannot split, dividing tensors along their first dimension and block by block."""
    reasons = [f"{name} is a scalar" for name, parameter in network.named_parameters() if parameter.ndim == 0]
    owners: dict[Tensor, int] = {}
    for number, block in enumerate(blocks_of(network)):
        if any(owners.setdefault(parameter, number) != number for parameter in block.parameters()):
            reasons.append(f"block {number} shares parameters with another")
    if reasons:
        raise ValueError(f"machine.shard=true is not valid: must be false for this backbone, as {reasons[0]}")


def is_split(tensor: Tensor) -> bool:
    """Whether each rank has but a part: a DTensor, told by its method, as importing the class takes a second."""
    return hasattr(tensor, "full_tensor")


def whole_of(tensor: Tensor) -> Tensor:
    """All of it; if it is split, every rank must ask."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def local_of(tensor: Tensor) -> Tensor:
    """What this rank has of it, sharing its memory."""
    return tensor.to_local() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The children of its outermost module lists."""
    return [block for blocks in _outermost_lists(network) for block in blocks]


def recompute_blocks(network: nn.Module) -> None:
    """Let every block recompute its activations in the backward pass."""
    blocks = blocks_of(network)
    if not blocks:
        raise ValueError("machine.checkpoint_activations=true is not valid: this backbone has no list of blocks")
    for block in blocks:
        block.forward = _recomputed(block.forward)


def _recomputed(forward: Any) -> Any:
    return lambda *args, **kwargs: recompute(forward, *args, use_reentrant=False, **kwargs)


def _outermost_lists(module: nn.Module) -> list[nn.ModuleList]:
    if isinstance(module, nn.ModuleList):
        return [module]
    return [found for child in module.children() for found in _outermost_lists(child)]
