"""Weights, averages and moments split between ranks (FSDP2), for sizes that one device does not hold.

Imported only by runs that ask for it: PyTorch's part in it takes a second to import.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from study.distributed import Ranks
from study.parallel import blocks_of


class Shards:
    """What each rank has of every tensor: a slice along the first dimension, in float32 on its device."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.device = ranks, device
        self.mesh = init_device_mesh(device.type, (ranks.world_size,))

    def split(self, network: nn.Module) -> None:
        """Leave this rank its part of every parameter.

        A block's whole parameters exist while it computes; those outside of all blocks from forward to backward.
        """
        for block in blocks_of(network):
            fully_shard(block, mesh=self.mesh)
        fully_shard(network, mesh=self.mesh)

    def part_of(self, whole: Tensor) -> DTensor:
        """This rank's part of what every rank is given whole. Nothing is sent."""
        size = -(-len(whole) // self.ranks.world_size)  # as torch.chunk: the last ranks may have less, or none
        start = min(self.ranks.rank * size, len(whole))
        part = whole[start : start + size].to(self.device).clone()
        shape, stride = whole.shape, whole.stride()
        return DTensor.from_local(part, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
