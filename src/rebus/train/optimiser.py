"""What learns, by which optimiser, and the checks of its losses and gradients."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import parallel
from rebus.train.stage import Optim, Trainable, matches


def select(module: nn.Module, trainable: list[Trainable]) -> dict[str, nn.Parameter]:
    """Freeze everything but what `trainable` names, which becomes float32; return that by name."""
    found = matches(module, trainable)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    learning = {name: p for entry, ps in found for name, p in ps.items() if entry.lr > 0}
    for name, parameter in learning.items():
        if not parameter.is_floating_point():
            raise RebusError(
                f"{name} is {parameter.dtype}, which cannot learn. Leave it out of the stage's `trainable`."
            )
        if parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # small updates would be lost in half precision
        parameter.requires_grad_(True)
    return learning


def build_optimiser(
    learning: Mapping[str, nn.Parameter], trainable: list[Trainable], optim: Optim
) -> torch.optim.AdamW:
    """AdamW over `learning` (from `select`), in groups of one rate and one decay, sharded or not; `peak` of a group is the
    rate that the schedule scales."""
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for name, parameter in learning.items():
        entry = next(e for e in trainable if fnmatch.fnmatchcase(name, e.pattern))
        decay = optim.weight_decay if entry.weight_decay is None else entry.weight_decay
        if parameter.ndim <= 1 and optim.decay == "matrices":
            decay = 0.0
        empty = {"params": [], "names": [], "peak": entry.lr, "weight_decay": decay}
        group = groups.setdefault((entry.lr, decay, parallel.in_shards(parameter)), empty)
        group["params"].append(parameter)
        group["names"].append(name)
    # the fused kernel is one pass over the weights; with a loss scaler the plain one is the tested path
    return torch.optim.AdamW(
        list(groups.values()), lr=0.0, betas=optim.betas, eps=optim.eps, fused=optim.precision != "fp16"
    )


def set_modes(module: nn.Module) -> None:
    """Training mode, except for parts that hold parameters of which none learns: their dropout stays off."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        set_modes(child)


def numbers(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The values as floats."""
    return {key: float(v.detach()) if isinstance(v, Tensor) else float(v) for key, v in values.items()}


def finite(values: Mapping[str, float], name: str, step: int, everywhere: bool = True) -> None:
    """Raises RebusError for a value that is not finite, parts before the total that they spoil; `everywhere` is false when
    another process has one."""
    for key in sorted(values, key=lambda k: k == "loss"):
        if not math.isfinite(values[key]):
            raise RebusError(
                f"{name}: at step {step} the part {key!r} of the loss is {values[key]}. The last checkpoint stands; "
                "resume from it with a lower learning rate, a longer warm-up or precision fp32."
            )
    if not everywhere:
        raise RebusError(f"{name}: at step {step} a part of the loss is not finite on another process, which names it.")


def clip(learning: Mapping[str, nn.Parameter], optim: Optim, name: str, step: int) -> dict[str, float]:
    """Clip the gradient where the stage asks for it; its norm before that, as a figure to log. In fp16 the loss scaler
    skips a step whose gradient is not finite; otherwise that raises RebusError, as does a gradient that reaches nothing.
    """
    reached = [p for p in learning.values() if p.grad is not None]
    if not reached:
        raise RebusError(
            f"{name}: at step {step} no gradient reaches any of the {len(learning)} parameters that should learn. "
            "Check that the loss depends on them and is not computed under no_grad."
        )
    kinds = [[p for p in reached if parallel.in_shards(p) is sharded] for sharded in (True, False)]
    gradients = [[p.grad for p in kind if p.grad is not None] for kind in kinds if kind]
    norms = [parallel.whole(torch.nn.utils.get_total_norm(some)) for some in gradients]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    if not math.isfinite(float(norm)):
        if optim.precision == "fp16":
            return {"skipped": 1.0}
        bad = [key for key, p in learning.items() if not finite_everywhere(p.grad)]
        raise RebusError(
            f"{name}: at step {step} the gradient of {', '.join(bad[:3]) or 'all parameters together'} is not finite. "
            "The last checkpoint stands; resume from it with a lower learning rate or precision fp32."
        )
    if optim.clip is not None:
        for kind in kinds:
            torch.nn.utils.clip_grads_with_norm_(kind, optim.clip, norm)
    return {"grad_norm": float(norm)}


def finite_everywhere(gradient: Tensor | None) -> bool:
    """Whether there is no gradient, or all of it is finite, other processes' shards of it too."""
    return gradient is None or bool(parallel.whole(torch.isfinite(gradient).all()))
