"""A run in progress, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import checkpointing
from rebus.train.stage import Stage


@dataclass
class Run:
    """Everything of a run that a checkpoint must bring back."""

    stage: Stage[Any]
    """module, data and generators"""
    learning: dict[str, nn.Parameter]
    """the parameters that learn, by name"""
    optimiser: torch.optim.AdamW
    """over `learning`"""
    scaler: torch.amp.GradScaler
    """of the loss; does nothing but in fp16"""
    device: torch.device
    """where the module is"""
    mean: dict[str, Tensor] | None
    """the average of `learning`, where the stage asks for one"""
    step: int = 0
    """optimiser steps done"""
    samples: int = 0
    """samples seen"""
    window: list[dict[str, float]] = field(default_factory=list)
    """the figures of each step since the last record"""

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint, and `weights.safetensors` with the averaged weights where there are some.

        Raises RebusError when the folder cannot be written; the checkpoints that were there are whole.
        """
        checkpointing.save(folder, self.step, gather(self), keep)
        self.write_weights(folder / "weights.safetensors")

    def write_weights(self, path: Path) -> None:
        """Write the weights that learn, averaged where that is asked for, and the buffers. Raises RebusError."""
        buffers = checkpointing.persistent_buffers(self.stage.module)
        about = {"stage": self.stage.name, "step": str(self.step)}
        checkpointing.write_weights(path, {**(self.mean or self.learning), **buffers}, about)

    def take_weights(self, found: Mapping[str, Tensor]) -> None:
        """Put what `write_weights` wrote into the module."""
        load_into(self.learning, found)
        load_into(checkpointing.persistent_buffers(self.stage.module), found)


def load_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])


def gather(run: Run) -> dict[str, Any]:
    """What `restore` needs. The optimiser's state is kept by parameter name, so that it survives a change of rates or of
    the order of patterns."""
    held = run.optimiser.state
    return {
        "step": run.step,
        "samples": run.samples,
        "window": run.window,
        "weights": {name: p.detach() for name, p in run.learning.items()},
        "buffers": checkpointing.persistent_buffers(run.stage.module),
        "optimiser": {name: dict(held[p]) for name, p in run.learning.items() if p in held},
        "scaler": run.scaler.state_dict(),
        "mean": run.mean,
        "data": run.stage.data.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        "generators": {name: g.get_state() for name, g in run.stage.generators.items()},
    }


def restore(run: Run, saved: dict[str, Any], note: Callable[[str], None]) -> None:
    """Put a saved state back. Raises RebusError where it belongs to other parameters, buffers or generators."""
    buffers = checkpointing.persistent_buffers(run.stage.module)
    for what, there, here in (
        ("parameters that learn", saved["weights"], run.learning),
        ("buffers", saved["buffers"], buffers),
        ("generators", saved["generators"], {name: g.get_state() for name, g in run.stage.generators.items()}),
    ):
        check_same(what, there, here)
    load_into(run.learning, saved["weights"])
    load_into(buffers, saved["buffers"])
    numbered = [name for group in run.optimiser.param_groups for name in group["names"]]
    state = {at: saved["optimiser"][name] for at, name in enumerate(numbered) if name in saved["optimiser"]}
    run.optimiser.load_state_dict({"state": state, "param_groups": run.optimiser.state_dict()["param_groups"]})
    if saved["scaler"]:
        run.scaler.load_state_dict(saved["scaler"])
    run.stage.data.load_state_dict(saved["data"])
    torch.set_rng_state(saved["random"])
    if run.device.type == "cuda" and saved["random_cuda"] is not None:
        torch.cuda.set_rng_state(saved["random_cuda"], run.device)
    for name, generator in run.stage.generators.items():
        generator.set_state(saved["generators"][name])
    run.step, run.samples, run.window = saved["step"], saved["samples"], saved["window"]
    if run.mean is not None:
        load_into(run.mean, saved["mean"] or saved["weights"])
        if not saved["mean"]:
            note("the checkpoint holds no averaged weights; the average begins at its weights")


def check_same(what: str, there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    """Raise RebusError unless both hold tensors of the same names and shapes."""
    was = {name: tuple(t.shape) for name, t in there.items()}
    now = {name: tuple(t.shape) for name, t in here.items()}
    other = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if other:
        raise RebusError(
            f"The checkpoint is of another run: {len(was)} {what} there, {len(now)} here, and {other[0]!r} is "
            f"{was.get(other[0], 'missing')} there, {now.get(other[0], 'missing')} here ({len(other)} differ). "
            "Name another folder to start anew."
        )
