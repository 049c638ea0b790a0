"""The one place that knows how many processes train: those of torch.distributed where it was started, else one.

Dimension key: B features of one process · D their width
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _several() else 1


def main_process() -> bool:
    """Whether this process writes logs and checkpoints."""
    return rank() == 0


def all_gather_features(x_BD: Tensor, *, gradient: bool = True) -> Tensor:
    """The features of every process in the order of their numbers, float[B * world_size, D]: the negatives of a contrastive
    loss. With `gradient`, what other processes make of this one's features comes back to it; without, these are plain
    numbers, this process's own too. Alone, they are the features themselves."""
    if not _several():
        return x_BD
    return _Gather.apply(x_BD) if gradient else _gathered(x_BD.detach())


def _gathered(x_BD: Tensor) -> Tensor:
    pieces = [torch.empty_like(x_BD) for _ in range(world_size())]
    dist.all_gather(pieces, x_BD.contiguous())
    return torch.cat(pieces)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        return _gathered(x_BD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad_AD = grads[0].contiguous()
        dist.all_reduce(grad_AD)
        return grad_AD.chunk(world_size())[rank()]


def wrap(module: nn.Module) -> nn.Module:
    """The module as the training step is to call it."""
    return module
