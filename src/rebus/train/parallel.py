"""The one place that knows how many processes train: those of torch.distributed where it was started, else one.

What processes tell each other about a run (counts, losses, what went wrong) is numbers on the CPU, so that a group that
computes on GPUs needs a backend for both: `init_process_group("cpu:gloo,cuda:nccl")`, as `rebus train` starts it.

Dimension key: B features of one process · D their width · R processes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rebus.errors import RebusError

T = TypeVar("T")


def several() -> bool:
    """Whether more than one process may be training."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number."""
    return dist.get_rank() if several() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if several() else 1


def main_process() -> bool:
    """Whether this process writes logs and whatever else is written once."""
    return rank() == 0


# ------------------------------------------------------------------------------------------------ data


def sharded(batch: int) -> dict[str, int]:
    """This process's part of a batch of `batch` documents, as the arguments of a `Loader`. Raises RebusError when the
    processes cannot share it evenly."""
    world = world_size()
    if batch % world:
        raise RebusError(
            f"A batch of {batch} cannot be shared evenly by {world} processes. Make it a multiple of {world}, or start "
            "another number of processes."
        )
    return {"batch_size": batch // world, "rank": rank(), "world": world}


# ------------------------------------------------------------------------------------------------ agreement


def total(*values: float) -> list[float]:
    """Each value summed over all processes. Alone, the values themselves."""
    if not several():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def everyone(value: T) -> list[T]:
    """What each process says, in the order of their numbers: any object that can be pickled, small ones only."""
    if not several():
        return [value]
    said: list[Any] = [None] * world_size()
    dist.all_gather_object(said, value)
    return said


def together(work: Callable[[], T], *, main: bool = False) -> T | None:
    """Do something on every process, or with `main` on the first alone, and go on only when it went well everywhere.

    Raises on every process when it failed on one: there what went wrong, elsewhere a RebusError that says so.
    """
    result, wrong = None, None
    if not main or main_process():
        try:
            result = work()
        except Exception as error:
            wrong = error
    said = everyone(None if wrong is None else str(wrong) or type(wrong).__name__)
    if wrong is not None:
        raise wrong
    for number, what in enumerate(said):
        if what is not None:
            raise RebusError(what if main else f"Process {number} of {len(said)} stopped: {what}")
    return result


def lost(error: BaseException) -> bool:
    """Whether an error says that another process ended, or cannot be reached."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def same(tensors: list[Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if several():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


# ------------------------------------------------------------------------------------------------ sharded tensors


def in_shards(tensor: Tensor) -> bool:
    """Whether this process holds a shard of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as every process can read it alone; what is sharded is gathered, which all processes must ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_into(tensor: Tensor, value: Tensor) -> None:
    """Copy a value, which may be whole, into a tensor, which may be sharded."""
    if isinstance(tensor, DTensor) and not isinstance(value, DTensor):
        value = value.to(tensor.device, tensor.dtype)
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


# ------------------------------------------------------------------------------------------------ features


def sizes(count: int) -> list[int]:
    """How many features each process has."""
    if not several():
        return [count]
    counts_R = torch.zeros(world_size(), dtype=torch.int64)
    counts_R[rank()] = count
    dist.all_reduce(counts_R)
    return counts_R.tolist()


def first_of(count: int) -> int:
    """Where the `count` features of this process begin among those of all."""
    return sum(sizes(count)[: rank()])


def all_gather_features(x_BD: Tensor, *, gradient: bool = True) -> Tensor:
    """The features of every process in the order of their numbers, float[sum of all B, D]: the negatives of a contrastive
    loss. With `gradient`, what other processes make of this one's features comes back to it; without, these are plain
    numbers, this process's own too. Alone, they are the features themselves. Processes may have different numbers of them.
    """
    if not several():
        return x_BD
    held = sizes(len(x_BD))
    return _Gather.apply(x_BD, held) if gradient else _gathered(x_BD.detach(), held)


def _gathered(x_BD: Tensor, held: list[int]) -> Tensor:
    most = max(held)  # the collective needs pieces of one size
    padded_BD = torch.cat([x_BD, x_BD.new_zeros(most - len(x_BD), *x_BD.shape[1:])]).contiguous()
    pieces = [torch.empty_like(padded_BD) for _ in held]
    dist.all_gather(pieces, padded_BD)
    return torch.cat([piece[:count] for piece, count in zip(pieces, held, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, held: list[int]) -> Tensor:
        ctx.held = held
        return _gathered(x_BD, held)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_AD = grads[0].contiguous()
        dist.all_reduce(grad_AD)
        return grad_AD.split(ctx.held)[rank()], None
