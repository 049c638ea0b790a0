"""The training loop. One function, `fit`, to be read from top to bottom; what it calls is below it.

A resumed run gives the losses of an unbroken one: a checkpoint holds weights, optimiser, average, position in the data
and every random state, and the learning rate is a function of the step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import checkpointing, log, parallel
from rebus.train.schedule import average, rate
from rebus.train.stage import Optim, Stage, Trainable, matches, named_values, trainable_table

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class FitResult:
    """What a call of `fit` did."""

    step: int
    """optimiser steps that the run has behind it, those of earlier calls included"""
    finished: bool
    """whether that is all of them; if not, calling again goes on"""
    stopped_by: str | None
    """the signal that stopped it, `SIGTERM` or `SIGINT`"""
    losses: list[float]
    """the total loss of every step of this call"""
    evals: dict[str, float]
    """the newest value of every evaluation of this call"""
    weights: Path
    """safetensors: every parameter that learns (averaged where the stage asks for it) and the persistent buffers"""


def fit(
    stage: Stage[Any],
    folder: Path | str,
    *,
    device: torch.device | str,
    seed: int = 0,
    log_every: int = 10,
    eval_every: int | None = None,
    save_every: int = 500,
    keep: int = 2,
    resume: bool = True,
    progress: log.Reporter | None = None,
) -> FitResult:
    """Train a stage, or go on where `folder` holds checkpoints of it.

    Writes into `folder`: checkpoints (the `keep` newest), `weights.safetensors` with every checkpoint, `config.json`,
    `log.jsonl` (means since the last record), TensorBoard files where that is installed, `curves.png` at the end.
    Evaluations run every `eval_every` steps (None: never) and after the last. SIGTERM and Ctrl-C end the step under way,
    save and return; a second Ctrl-C interrupts at once. The caller's global random state is left as it was.

    Raises RebusError when a pattern matches nothing, a loss or gradient is not finite (the last checkpoint stands), the
    data is empty, the folder cannot be written, or it holds a run of other parameters or, with `resume=False`, any run.
    """
    folder, device, optim = Path(folder), torch.device(device), stage.optim
    watcher = progress or log.Silent()
    model = parallel.wrap(stage.module.to(device))
    learning = select(stage.module, stage.trainable)
    optimiser = build_optimiser(stage.module, stage.trainable, optim)
    scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
    checkpointing.check_plain(stage.data.state_dict(), f"the data of {stage.name}")
    saved = checkpointing.newest(folder, watcher.note)
    if saved is not None and not resume:
        raise RebusError(
            f"{folder} holds a run that is at step {saved['step']}, and this one is to start from the beginning. "
            "Resume it, or name another folder."
        )
    with isolated_random(device, seed), stop_signals() as stop:
        run = Run()
        if saved is not None:
            restore(saved, stage, learning, optimiser, scaler, run, device)
        elif optim.ema is not None:
            run.mean = {name: p.detach().clone() for name, p in learning.items()}
        table = trainable_table(stage.module, stage.trainable)
        describe(stage, folder, seed, table)
        journal = log.Journal(folder, run.step)
        watcher.start(stage.name, table, run.step, optim.steps)

        def keep_state() -> None:
            state = gather(stage, learning, optimiser, scaler, run, device)
            checkpointing.save(folder, run.step, state, keep)
            final = {**(run.mean or learning), **checkpointing.persistent_buffers(stage.module)}
            checkpointing.write_weights(weights, final, {"stage": stage.name, "step": str(run.step)})

        weights = folder / "weights.safetensors"
        batches, losses, evals, saved_at = endless(stage), [], {}, run.step if saved else -1
        set_modes(stage.module)
        clock = time.perf_counter()
        try:
            while run.step < optim.steps and not stop:
                share = rate(optim, run.step)
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * share
                values: dict[str, float] = {}
                for _ in range(optim.accumulate):
                    batch = to_device(next(batches), device)
                    with torch.autocast(device.type, AUTOCAST[optim.precision], enabled=optim.precision != "fp32"):
                        out = stage.step(model, batch)
                    scaler.scale(out.total / optim.accumulate).backward()
                    for name, value in finite(named_values(out), stage.name, run.step + 1).items():
                        values[name] = values.get(name, 0.0) + value / optim.accumulate
                    run.samples += batch_size(batch)
                scaler.unscale_(optimiser)
                values["grad_norm"] = clip(learning, optim, stage.name, run.step + 1)
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                if run.mean is not None and optim.ema is not None:
                    average(run.mean, learning, optim.ema, run.step)
                run.step += 1
                run.window.append(values)
                losses.append(values["loss"])
                watcher.step(run.step)

                last = run.step == optim.steps
                if run.step % log_every == 0 or last:
                    seconds, clock = time.perf_counter() - clock, time.perf_counter()
                    record = summary(run, max(g["lr"] for g in optimiser.param_groups), seconds)
                    journal.record(record)
                    watcher.record(record)
                if stage.evals and (last or (eval_every and run.step % eval_every == 0)):
                    with averaged(learning, run.mean):
                        evals.update(evaluate(stage, device))
                    journal.record({"step": run.step, **evals})
                    watcher.record({"step": run.step, **evals})
                if run.step % save_every == 0 or last:
                    keep_state()
                    saved_at = run.step
            if saved_at != run.step or not weights.exists():
                keep_state()
            if run.mean is not None and run.step >= optim.steps:
                load_into(learning, run.mean)  # the module leaves with the weights that were saved
            with contextlib.suppress(ImportError):  # curves need matplotlib, an extra
                log.draw_curves(folder)
        finally:
            journal.close()
            watcher.close()
    return FitResult(run.step, run.step >= optim.steps, stop[0] if stop else None, losses, evals, weights)


@dataclass
class Run:
    """What of a run changes and is neither weights nor optimiser."""

    step: int = 0
    samples: int = 0
    samples_logged: int = 0
    mean: dict[str, Tensor] | None = None
    window: list[dict[str, float]] = field(default_factory=list)


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


def build_optimiser(module: nn.Module, trainable: list[Trainable], optim: Optim) -> torch.optim.AdamW:
    """AdamW with one group per pattern and per kind of decay; `peak` of a group is the rate that the schedule scales."""
    groups: list[dict[str, Any]] = []
    for entry, parameters in matches(module, trainable):
        if entry.lr == 0:
            continue
        decay = optim.weight_decay if entry.weight_decay is None else entry.weight_decay
        for flat in (False, True):
            names = [name for name, p in parameters.items() if (p.ndim <= 1) == flat]
            held = 0.0 if flat and optim.decay == "matrices" else decay
            if names:
                params = [parameters[name] for name in names]
                groups.append({"params": params, "names": names, "peak": entry.lr, "weight_decay": held})
    # the fused kernel is one pass over the weights; with a loss scaler the plain one is the tested path
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=optim.precision != "fp16")


def set_modes(module: nn.Module) -> None:
    """Training mode, except for parts that hold parameters of which none learns: their dropout stays off."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    module.training = True
    for child in module.children():
        set_modes(child)


def endless(stage: Stage[Any]) -> Iterator[Any]:
    """The stage's batches, from the beginning again when they end. Raises RebusError when there are none at all."""
    empty = 0
    while empty < 2:  # a resumed source may stand at its end, so that one pass may be empty
        empty += 1
        for batch in stage.data:
            empty = 0
            yield batch
    raise RebusError(f"The data of {stage.name} is empty: it yields no batch. Check its source and its filters.")


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it, inside lists, tuples and dicts, on the device; anything else as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    return [to_device(value, device) for value in batch] if isinstance(batch, list) else batch


def batch_size(batch: Any) -> int:
    """How many samples: the first axis of a tensor, of a dict's, tuple's or dataclass's first part; else the length."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, Mapping):
        return batch_size(next(iter(batch.values()), ()))
    if isinstance(batch, tuple) and batch:
        return batch_size(batch[0])
    if dataclasses.is_dataclass(batch):
        return batch_size(getattr(batch, dataclasses.fields(batch)[0].name))
    return len(batch) if hasattr(batch, "__len__") else 1


def finite(values: Mapping[str, Tensor | float], name: str, step: int) -> dict[str, float]:
    """The values as floats. Raises RebusError for one that is not finite, parts before the total that they spoil."""
    held = {key: float(v.detach()) if isinstance(v, Tensor) else float(v) for key, v in values.items()}
    for key in sorted(held, key=lambda k: k == "loss"):
        if not math.isfinite(held[key]):
            raise RebusError(
                f"{name}: at step {step} the part {key!r} of the loss is {held[key]}. The last checkpoint stands; "
                "resume from it with a lower learning rate, a longer warm-up or precision fp32."
            )
    return held


def clip(learning: Mapping[str, nn.Parameter], optim: Optim, name: str, step: int) -> float:
    """Clip the gradient where the stage asks for it and return its norm before that. A loss scaler deals with infinite
    gradients itself; otherwise they raise RebusError."""
    gradients = [p.grad for p in learning.values() if p.grad is not None]
    if not gradients:
        raise RebusError(
            f"{name}: at step {step} no gradient reaches any of the {len(learning)} parameters that should learn. "
            "Check that the loss depends on them and is not computed under no_grad."
        )
    norm = torch.nn.utils.get_total_norm(gradients)
    if not math.isfinite(float(norm)) and optim.precision != "fp16":
        bad = [key for key, p in learning.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        raise RebusError(
            f"{name}: at step {step} the gradient of {', '.join(bad[:3]) or 'all parameters together'} is not finite. "
            "The last checkpoint stands; resume from it with a lower learning rate or precision fp32."
        )
    if optim.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(learning.values(), optim.clip, norm)
    return float(norm)


def summary(run: Run, lr: float, seconds: float) -> dict[str, float]:
    """The record of the steps since the last one: means, the highest rate, samples per second. Begins a new window."""
    names = dict.fromkeys(name for values in run.window for name in values)
    held = {name: [v[name] for v in run.window if name in v] for name in names}
    means = {name: sum(v) / len(v) for name, v in held.items()}
    speed = (run.samples - run.samples_logged) / max(seconds, 1e-9)
    run.window, run.samples_logged = [], run.samples
    return {"step": run.step, "lr": lr, **means, "samples": run.samples, "samples_per_second": speed}


@torch.no_grad()
def evaluate(stage: Stage[Any], device: torch.device) -> dict[str, float]:
    """Every (name, value) of the stage's evaluations, whose random draws leave those of the training alone."""
    stage.module.eval()
    try:
        with isolated_random(device, 0):
            return {name: float(value) for task in stage.evals for name, value in task()}
    finally:
        set_modes(stage.module)


def load_into(learning: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(values[name])


@contextlib.contextmanager
def averaged(learning: Mapping[str, Tensor], mean: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The averaged weights in the module, where there are some, and the training's own back afterwards."""
    if mean is None:
        yield
        return
    own = {name: p.detach().clone() for name, p in learning.items()}
    load_into(learning, mean)
    try:
        yield
    finally:
        load_into(learning, own)


@contextlib.contextmanager
def isolated_random(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's own generators (dropout draws from them) inside, and leave the caller's as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def stop_signals() -> Iterator[list[str]]:
    """A list that gets the name of a signal that asks to stop. Outside the main thread no signal can be heard."""
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, _frame: object) -> None:
        heard.append(signal.Signals(number).name)
        if heard.count("SIGINT") > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe(stage: Stage[Any], folder: Path, seed: int, table: list[Any]) -> None:
    """Write the resolved config beside the weights."""
    held = {"stage": stage.name, "seed": seed, "config": stage.config, "optim": stage.optim, "trainable": table}
    checkpointing.write_json(folder / "config.json", held)


def gather(
    stage: Stage[Any],
    learning: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run: Run,
    device: torch.device,
) -> dict[str, Any]:
    """Everything that `restore` needs. The optimiser's state is kept by parameter name, so that it survives a change of
    rates or of the order of patterns."""
    return {
        "step": run.step,
        "samples": run.samples,
        "samples_logged": run.samples_logged,
        "window": run.window,
        "weights": {name: p.detach() for name, p in learning.items()},
        "buffers": checkpointing.persistent_buffers(stage.module),
        "optimiser": {name: dict(optimiser.state[p]) for name, p in learning.items() if p in optimiser.state},
        "scaler": scaler.state_dict(),
        "mean": run.mean,
        "data": stage.data.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "generators": {name: g.get_state() for name, g in stage.generators.items()},
    }


def restore(
    saved: dict[str, Any],
    stage: Stage[Any],
    learning: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    run: Run,
    device: torch.device,
) -> None:
    """Put a saved state back. Raises RebusError where it belongs to other parameters."""
    was = {name: tuple(t.shape) for name, t in saved["weights"].items()}
    now = {name: tuple(p.shape) for name, p in learning.items()}
    if was != now:
        other = sorted(n for n in was.keys() | now.keys() if was.get(n) != now.get(n))
        raise RebusError(
            f"The checkpoint is of another run: {len(was)} parameters there, {len(now)} here; they differ in {len(other)}, "
            f"such as {other[0]} ({was.get(other[0])} there, {now.get(other[0])} here). Name another folder to start anew."
        )
    load_into(learning, saved["weights"])
    load_into(checkpointing.persistent_buffers(stage.module), saved["buffers"])
    numbered = [name for group in optimiser.param_groups for name in group["names"]]
    state = {at: saved["optimiser"][name] for at, name in enumerate(numbered) if name in saved["optimiser"]}
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    scaler.load_state_dict(saved["scaler"])
    stage.data.load_state_dict(saved["data"])
    torch.set_rng_state(saved["random"])
    if device.type == "cuda" and saved["random_cuda"] is not None:
        torch.cuda.set_rng_state(saved["random_cuda"], device)
    for name, generator in stage.generators.items():
        generator.set_state(saved["generators"][name])
    run.step, run.samples, run.samples_logged = saved["step"], saved["samples"], saved["samples_logged"]
    run.window = saved["window"]
    if stage.optim.ema is not None:
        run.mean = {name: t.to(device) for name, t in (saved["mean"] or saved["weights"]).items()}
