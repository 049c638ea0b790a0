"""How a stage's module lies on several processes: whole on each (DDP), or in shards (FSDP2); and activations recomputed.

A stage's step calls whatever it likes of its module. Both engines act before and after `forward`, so that the step as a
whole is made the forward of one module around it.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rebus.errors import RebusError
from rebus.nn.quantize import VectorQuantizer
from rebus.train import parallel
from rebus.train.stage import HasTotal, Stage


@dataclass(frozen=True)
class Layout:
    """How a module lies on the processes that train it. Of one process it asks nothing."""

    shard: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: every process holds everything and gradients are averaged. `fsdp`: what learns, its optimiser state, and the
    blocks that hold something that learns are split among the processes; frozen parts stay whole, since how often they
    are called depends on a process's own data."""
    recompute: bool = False
    """activation checkpointing: what happens within a block is computed again in the backward pass, not kept"""


class Step(nn.Module):
    """A stage's step as the forward of a module."""

    def __init__(self, stage: Stage[Any]) -> None:
        super().__init__()
        self.module = stage.module
        self.step = stage.step
        self.scalars: list[nn.Parameter] = []

    def forward(self, batch: Any) -> HasTotal:
        """The losses of one batch."""
        return self.step(self.module, batch)


def wrap(stage: Stage[Any], layout: Layout) -> Callable[[Any], HasTotal]:
    """What computes the losses of a batch. With several processes, all begin with the first one's weights and buffers, and
    with `fsdp` the module's parameters are sharded from now on: look them up again.

    What learns must have been selected before. Raises RebusError for a module that cannot be sharded.
    """
    step = Step(stage)
    if not parallel.several():
        return step
    parallel.same([tensor.detach() for tensor in (*stage.module.parameters(), *stage.module.buffers())])
    if layout.shard == "fsdp":
        return shard(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name of an argument is not known to older versions
        # buffers are kept equal by those who change them; a parameter that a batch does not use has no gradient
        return DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True, init_sync=False)


def shard(step: Step) -> Step:
    """FSDP2 over the blocks that hold something that learns, and over what else learns."""
    for name, module in step.module.named_modules():
        if isinstance(module, VectorQuantizer) and any(p.requires_grad for p in module.parameters()):
            raise RebusError(
                f"{name} is a codebook whose unused entries are moved by hand while it learns, which shards do not keep. "
                "Train this stage with --parallel ddp: a tokenizer fits into one device."
            )
    learns = [p for p in step.parameters() if p.requires_grad]
    step.scalars = [p for p in learns if p.ndim == 0]  # a number cannot be split
    mesh = init_device_mesh(learns[0].device.type, (parallel.world_size(),))
    held: set[nn.Parameter] = set()
    for block in blocks(step.module):
        if any(p.requires_grad for p in block.parameters()):
            held.update(block.parameters())
            fully_shard(block, mesh=mesh)
            for entry in entries(block)[1:]:
                register_fsdp_forward_method(block, entry)
    whole = {p for p in step.parameters() if not p.requires_grad and p not in held}
    fully_shard(step, mesh=mesh, ignored_params=whole | set(step.scalars))
    return step


def average_scalars(step: Any) -> None:
    """Average the gradients that the engine leaves to us: those of single numbers beside shards."""
    for parameter in getattr(step, "scalars", ()):
        gradient = parameter.grad
        value = torch.zeros(2, device=parameter.device)
        if gradient is not None:
            value[0], value[1] = gradient, 1.0
        dist.all_reduce(value)
        if value[1]:
            parameter.grad = (value[0] / parallel.world_size()).to(parameter.dtype)


@contextlib.contextmanager
def readable(step: Any) -> Iterator[None]:
    """The module can be called in any way inside, not by its step alone, as long as all processes call the same."""
    if not isinstance(step, FSDPModule):
        yield
        return
    step.unshard()
    try:
        yield
    finally:
        step.reshard()


def accumulating(step: Any, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Around the batches of one optimiser step: DDP averages gradients once, with the last of them. (FSDP2 does with each,
    which keeps no whole gradients.)"""
    if isinstance(step, DistributedDataParallel) and not last:
        return step.no_sync()
    return contextlib.nullcontext()


# ------------------------------------------------------------------------------------------------ blocks


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated layers: members of the outermost lists of two or more modules of one class that have a forward."""
    found: list[nn.Module] = []
    for child in module.children():
        kinds = {type(member) for member in child} if isinstance(child, nn.ModuleList) else set()
        kind = next(iter(kinds)) if len(kinds) == 1 else None
        own = kind is not None and not kind.__module__.startswith("torch.nn")
        if own and len(list(child.children())) > 1 and kind.forward is not nn.Module.forward:  # type: ignore[union-attr]
            found += list(child.children())
        else:
            found += blocks(child)
    return found


def entries(block: nn.Module) -> tuple[str, ...]:
    """The methods by which a block is called from outside; a class that has more than `forward` lists the others in
    `entries`."""
    others = getattr(type(block), "entries", ())
    return ("forward", *others)


@contextlib.contextmanager
def recomputing(module: nn.Module, layout: Layout) -> Iterator[None]:
    """Blocks keep what goes into them alone, where the layout says so."""
    changed: list[tuple[nn.Module, str]] = []
    for block in blocks(module) if layout.recompute else []:
        for entry in entries(block):
            setattr(block, entry, again(getattr(block, entry)))
            changed.append((block, entry))
    try:
        yield
    finally:
        for block, entry in changed:
            delattr(block, entry)


def again(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, made again in the backward pass in place of keeping what it computed."""

    @functools.wraps(call)
    def kept(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return call(*args, **named)
        return checkpoint(call, *args, use_reentrant=False, **named)

    return kept
