"""A run in progress, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import checkpointing, dcp, parallel
from rebus.train.process import seed_of
from rebus.train.stage import Stage


@dataclass
class Run:
    """Everything of a run that a checkpoint must bring back."""

    stage: Stage[Any]
    """module, data and generators"""
    learning: dict[str, nn.Parameter]
    """the parameters that learn, by name; this process's shards where they are sharded"""
    optimiser: torch.optim.AdamW
    """over `learning`"""
    scaler: torch.amp.GradScaler
    """of the loss; does nothing but in fp16"""
    device: torch.device
    """where the module is"""
    mean: dict[str, Tensor] | None
    """the average of `learning`, where the stage asks for one"""
    seed: int = 0
    """of the run"""
    step: int = 0
    """optimiser steps done"""
    samples: int = 0
    """samples seen by all processes"""
    window: list[dict[str, float]] = field(default_factory=list)
    """this process's figures of each step since the last record"""
    spoiled: list[str] = field(default_factory=list)
    """checkpoints that could not be read when the run was resumed"""

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint, and `weights.safetensors` with the averaged weights where there are some. All processes call
        it together.

        Raises RebusError when the folder cannot be written; the checkpoints that were there are whole.
        """
        # buffers that no process shares with others, such as running statistics, are the first one's from here on
        parallel.same(list(checkpointing.persistent_buffers(self.stage.module).values()))
        dcp.save(folder, self.step, tensors(self), shared(self), own(self), keep, self.spoiled)
        self.write_weights(folder / "weights.safetensors")

    def write_weights(self, path: Path) -> None:
        """Write the weights that learn, averaged where that is asked for, and the buffers, on the first process. Raises
        RebusError."""
        # one after the other, so that never more than one is whole on a device
        gathered = {name: parallel.whole(x.detach()).cpu() for name, x in (self.mean or self.learning).items()}
        gathered |= checkpointing.persistent_buffers(self.stage.module)
        about = {"stage": self.stage.name, "step": str(self.step)}
        parallel.together(lambda: checkpointing.write_weights(path, gathered, about), main=True)

    def take_weights(self, found: Mapping[str, Tensor]) -> None:
        """Put what `write_weights` wrote into the module."""
        load_into(self.learning, found)
        load_into(checkpointing.persistent_buffers(self.stage.module), found)


def load_into(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            parallel.copy_into(tensor, values[name])


# ------------------------------------------------------------------------------------------------ what is kept


def tensors(run: Run) -> dict[str, Tensor]:
    """Weights, buffers, average and optimiser state, by part and name. The optimiser's is kept by parameter name, so that
    it survives a change of rates or of the order of patterns."""
    held = {f"weights/{name}": p.detach() for name, p in run.learning.items()}
    held |= {f"buffers/{name}": b for name, b in checkpointing.persistent_buffers(run.stage.module).items()}
    held |= {f"mean/{name}": x for name, x in (run.mean or {}).items()}
    for name, parameter in run.learning.items():
        held |= {f"optimiser/{key}/{name}": x for key, x in run.optimiser.state.get(parameter, {}).items()}
    return held


def shared(run: Run) -> dict[str, Any]:
    """What is one for all processes."""
    world = parallel.world_size()
    return {"step": run.step, "samples": run.samples, "scaler": run.scaler.state_dict(), "world": world}


def own(run: Run) -> dict[str, Any]:
    """What each process has of its own."""
    return {
        "window": run.window,
        "data": run.stage.data.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        "generators": {name: g.get_state() for name, g in run.stage.generators.items()},
    }


# ------------------------------------------------------------------------------------------------ and brought back


def resume_from(run: Run, folder: Path, note: Callable[[str], None], *, allowed: bool = True) -> bool:
    """Put the newest state that can be read back; False, and random states for each process, where there is no checkpoint.

    Raises RebusError where it belongs to other parameters, buffers or generators, none can be read, or there is one and
    that is not `allowed`.
    """
    there = parallel.everyone([dcp.step_of(path) for path in dcp.checkpoints(folder)])[0]
    if there and not allowed:
        raise RebusError(
            f"{folder} holds a run that is at step {there[-1]}, and this one is to start from the beginning. "
            "Resume it, or name another folder."
        )
    for path in dcp.newest_first(folder):
        saved, wrong = None, ""
        try:
            saved = dcp.Checkpoint(path)
            mine = saved.own(parallel.rank() if saved.world == parallel.world_size() else 0)
        except dcp.UNREADABLE as error:
            wrong = checkpointing.first_line(error)
        if not (found := next(filter(None, parallel.everyone(wrong)), "")):
            assert saved is not None
            check(run, saved, mine)
            try:
                restore_tensors(run, saved, note)
            except dcp.UNREADABLE as error:  # torch tells every process of what one could not read
                found = dcp.cause(error)
        if not found:
            assert saved is not None
            restore_rest(run, saved, mine, note)
            return True
        run.spoiled.append(path.name)
        note(f"{path.name} cannot be read ({found}); trying the one before it")
    if parallel.rank():
        for generator in run.stage.generators.values():
            generator.manual_seed(seed_of(generator.initial_seed(), parallel.rank()))
    return False


def check(run: Run, saved: dcp.Checkpoint, mine: dict[str, Any]) -> None:
    """Raise RebusError unless a checkpoint is of this run's parameters, buffers and generators."""
    buffers = checkpointing.persistent_buffers(run.stage.module)
    generators = {name: g.get_state() for name, g in run.stage.generators.items()}
    for what, there, here in (
        ("parameters that learn", of_part(saved, "weights"), shapes(run.learning)),
        ("buffers", of_part(saved, "buffers"), shapes(buffers)),
        ("generators", shapes(mine["generators"]), shapes(generators)),
    ):
        check_same(what, there, here)


def restore_tensors(run: Run, saved: dcp.Checkpoint, note: Callable[[str], None]) -> None:
    """Weights, buffers, average and optimiser state."""
    wanted = {f"weights/{name}": p.detach() for name, p in run.learning.items()}
    wanted |= {f"buffers/{name}": b for name, b in checkpointing.persistent_buffers(run.stage.module).items()}
    averaged = bool(saved.names("mean"))
    if run.mean is not None and averaged:
        wanted |= {f"mean/{name}": x for name, x in run.mean.items()}
    numbered = [name for group in run.optimiser.param_groups for name in group["names"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key in ("step", "exp_avg", "exp_avg_sq"):
        there = set(saved.names(f"optimiser/{key}"))
        for number, name in enumerate(numbered):
            if name in there:
                like = run.learning[name]
                empty = torch.zeros((), dtype=torch.float32) if key == "step" else torch.zeros_like(like).detach()
                state.setdefault(number, {})[key] = wanted[f"optimiser/{key}/{name}"] = empty
    with torch.no_grad():
        saved.load(wanted)
    run.optimiser.load_state_dict({"state": state, "param_groups": run.optimiser.state_dict()["param_groups"]})
    if run.mean is not None and not averaged:
        load_into(run.mean, run.learning)
        note("the checkpoint holds no averaged weights; the average begins at its weights")


def restore_rest(run: Run, saved: dcp.Checkpoint, mine: dict[str, Any], note: Callable[[str], None]) -> None:
    """Counts, the position in the data and random states. Where other processes wrote it than read it, the data go on where
    the first was, and random states begin anew, each process its own."""
    run.step, run.samples = saved.shared["step"], saved.shared["samples"]
    if saved.shared["scaler"]:
        run.scaler.load_state_dict(saved.shared["scaler"])
    run.stage.data.load_state_dict(mine["data"])
    if saved.world != parallel.world_size():
        note(f"written by {saved.world} processes, read by {parallel.world_size()}: random states begin anew")
        torch.manual_seed(seed_of(run.seed + run.step, parallel.rank()))
        for generator in run.stage.generators.values():
            generator.manual_seed(seed_of(run.seed + run.step, parallel.rank()))
        return
    run.window = mine["window"]
    torch.set_rng_state(mine["random"])
    if run.device.type == "cuda" and mine["random_cuda"] is not None:
        torch.cuda.set_rng_state(mine["random_cuda"], run.device)
    for name, generator in run.stage.generators.items():
        generator.set_state(mine["generators"][name])


# ------------------------------------------------------------------------------------------------ comparing


Shapes = Mapping[str, tuple[int, ...]]


def shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    """The shapes of tensors, whole ones of those that are sharded."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def of_part(saved: dcp.Checkpoint, part: str) -> Shapes:
    """The shapes of a part of a checkpoint."""
    return {name: saved.shapes[f"{part}/{name}"] for name in saved.names(part)}


def check_same(what: str, was: Shapes, now: Shapes) -> None:
    """Raise RebusError unless both are of the same names and shapes."""
    other: Iterable[str] = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    for name in other:
        raise RebusError(
            f"The checkpoint is of another run: {len(was)} {what} there, {len(now)} here, and {name!r} is "
            f"{was.get(name, 'missing')} there, {now.get(name, 'missing')} here ({len(list(other))} differ). "
            "Name another folder to start anew."
        )
