"""Foreign modules for tests: some agree with ours, some do not."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models import Denoiser


class PlainAttention(nn.Module):
    """DiT's attention as it is first taught: softmax of q k^T, written out."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = ours.qkv, ours.proj, ours.heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def plain(ours: Denoiser) -> nn.Module:
    theirs = copy.deepcopy(ours)
    for block in theirs.blocks:
        block.attn = PlainAttention(block.attn)
    return theirs


def untrue(ours: Denoiser) -> nn.Module:
    theirs = copy.deepcopy(ours)
    with torch.no_grad():
        theirs.blocks[0].mlp.fc1.weight.mul_(1.5)
    return theirs


def own_weights(ours: Denoiser) -> nn.Module:
    theirs = untrue(ours)
    theirs.shares_weights = False
    return theirs


class Narrow(nn.Module):
    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return x[:, :1, :2]


def narrow(ours: Denoiser) -> nn.Module:
    return Narrow()


def broken(ours: Denoiser) -> nn.Module:
    raise KeyError("no such\nlayer")


def no_module(ours: Denoiser) -> int:
    return 3
