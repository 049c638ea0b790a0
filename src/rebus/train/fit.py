"""The training loop. One function, `fit`, to be read from top to bottom; what it calls is below it.

A resumed run gives the losses of an unbroken one: a checkpoint holds weights, optimiser, average, position in the data
and every random state, and the learning rate is a function of the step. Several processes train as one: what the losses
are divided by, when to stop and what went wrong is agreed on by all of them (`parallel.py`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebus.errors import RebusError
from rebus.nn.precision import fast_dtype
from rebus.sequence import Counts
from rebus.train import checkpointing, dcp, log, parallel, sharding
from rebus.train.batches import batch_size, endless, to_device
from rebus.train.gates import Gates
from rebus.train.optimiser import build_optimiser, clip, finite, numbers, select, set_modes
from rebus.train.process import isolated_random, seed_of, stop_signals
from rebus.train.schedule import average, rate
from rebus.train.sharding import Layout
from rebus.train.stage import Evaluation, Optim, Row, Stage, named_values, trainable_table
from rebus.train.state import Run, load_into, resume_from

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
    fell: str | None
    """what a gate stopped it for; `weights` are then the last good ones, and so are the module's"""
    losses: list[float]
    """the total loss of every step of this call"""
    evals: dict[str, float]
    """the newest value of every evaluation of the run"""
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
    layout: Layout | None = None,
) -> FitResult:
    """Train a stage, or go on where `folder` holds checkpoints of it.

    Writes into `folder`: checkpoints (the `keep` newest), `weights.safetensors` with every checkpoint, `config.json`,
    `log.jsonl` (means since the last record), TensorBoard files where that is installed, `curves.png` at the end.
    Evaluations run every `eval_every` steps (None: not on the way) and after the last, gates at their own intervals, which may
    end the run with the last good weights. SIGTERM and Ctrl-C end the step under way,
    save and return; a second Ctrl-C interrupts at once. The caller's global random state is left as it was.

    A batch that is refused (RebusError) saves what was learned before it; going on then begins with the batch after it.

    Where torch.distributed was started, all processes call this together with the same arguments and a stage whose data
    are this process's part; `layout` says how the module lies on them. The first one writes; all must see the folder.
    Checkpoints can be read by any number of processes. With `fsdp` the module is left sharded.

    Raises RebusError when a pattern matches nothing, a loss or gradient is not finite (the last checkpoint stands), the
    data is empty, the folder cannot be written, or it holds a run of other parameters or, with `resume=False`, any run.
    """
    if min(log_every, save_every, keep, 1 if eval_every is None else eval_every) < 1:
        raise RebusError(
            f"Intervals are counted in whole steps: log_every={log_every}, eval_every={eval_every}, "
            f"save_every={save_every}, keep={keep}. Give at least 1 each."
        )
    folder, device, optim, layout = Path(folder), torch.device(device), stage.optim, layout or Layout()
    watcher = progress if progress and parallel.main_process() else log.Silent()
    checkpointing.check_plain(stage.data.state_dict(), f"the data of {stage.name}")
    stage.module.to(device)
    learning = select(stage.module, stage.trainable)
    table = trainable_table(stage.module, stage.trainable)
    with (
        isolated_random(device, seed_of(seed, parallel.rank())),
        stop_signals() as stop,
        sharding.recomputing(stage.module, layout),
    ):
        model = sharding.wrap(stage, layout)
        named = dict(stage.module.named_parameters())  # shards, where there are any
        learning = {name: named[name] for name in learning}
        optimiser = build_optimiser(learning, stage.trainable, optim)
        scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        mean = None if optim.ema is None else {name: p.detach().clone() for name, p in learning.items()}
        run = Run(stage, learning, optimiser, scaler, device, mean, seed)
        resumed = resume_from(run, folder, watcher.note, allowed=resume)
        parallel.together(lambda: describe(stage, folder, seed, table, watcher.note), main=True)
        journal = parallel.together(lambda: log.Journal(folder, run.step, writes=parallel.main_process()))
        assert journal is not None
        # together: a process that read the log late would take what another has measured since for an earlier run's
        gates = parallel.together(lambda: Gates.of(stage.gates, folder, run.step))
        assert gates is not None
        figures = functools.partial(measure, model=model)
        losses: list[float] = []
        saved_at = run.step if resumed else -1
        batches = endless(stage)
        watcher.start(stage.name, table, run.step, optim.steps)
        stopping = bool(stop) and not parallel.several()
        try:
            set_modes(stage.module)
            clock, samples = time.perf_counter(), run.samples
            while not gates.shut(run, figures, journal, watcher) and run.step < optim.steps and not stopping:
                share = rate(optim, run.step)
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * share
                refused: RebusError | None = None
                held: list[tuple[Any, int]] = []
                autocast = casting(optim, device)
                try:
                    for _ in range(optim.accumulate):
                        batch = to_device(next(batches), device)
                        with autocast, torch.no_grad():
                            ready = batch if stage.prepare is None else stage.prepare(stage.module, batch)
                        held.append((ready, batch_size(batch)))
                except RebusError as error:
                    refused = error
                over, elsewhere = mean_counts(stage, held, refused, optim.accumulate)
                values: dict[str, float] = {}
                for number, (ready, size) in enumerate(held if not elsewhere else ()):
                    last = number == optim.accumulate - 1
                    try:
                        with sharding.accumulating(model, last):
                            with autocast:
                                out = model(ready if stage.prepare is None else ready.divided(over))
                            # of a mean over samples each process and batch has its share
                            part = size / over.words if stage.prepare is None and over.words else 1.0
                            scaler.scale(out.total * (part / optim.accumulate)).backward()
                    except RebusError as error:
                        refused = error
                        break
                    for name, value in numbers(named_values(out)).items():
                        values[name] = values.get(name, 0.0) + value * part / optim.accumulate
                if refused or elsewhere:  # a document that does not fit: hours of training are not its price
                    agreed = elsewhere or not parallel.several()  # in its step a process may be alone with it
                    if run.step > max(saved_at, 0) and agreed:
                        run.save(folder, keep)
                    raise refused or RebusError(elsewhere)
                wrong = not all(map(math.isfinite, values.values()))
                loss, samples_now, ill, heard = parallel.total(
                    values["loss"], sum(size for _, size in held), wrong, bool(stop)
                )
                if ill:
                    parallel.together(functools.partial(finite, values, stage.name, run.step + 1))
                values["loss"] = loss / parallel.world_size()
                sharding.average_scalars(model)
                scaler.unscale_(optimiser)
                values |= clip(learning, optim, stage.name, run.step + 1)
                scaler.step(optimiser)
                scaler.update()
                optimiser.zero_grad(set_to_none=True)
                if run.mean is not None and optim.ema is not None:
                    average(run.mean, learning, optim.ema, run.step)
                run.step += 1
                run.samples += int(samples_now)
                run.window.append(values)
                losses.append(values["loss"])
                watcher.step(run.step)

                if run.step % log_every == 0 or run.step == optim.steps:
                    now = time.perf_counter()
                    speed = (run.samples - samples) / (now - clock)
                    clock, samples = now, run.samples
                    record = summary(run) | {"samples_per_second": speed}
                    report(journal, watcher, record)
                if run.step % save_every == 0:
                    run.save(folder, keep)
                    saved_at = run.step
                if eval_every and run.step % eval_every == 0 and run.step < optim.steps:
                    evaluate(run, model, journal, watcher)
                stopping = bool(heard) if parallel.several() else bool(stop)
            if saved_at != run.step or parallel.everyone(dcp.step_of_weights(folder))[0] != run.step:
                run.save(folder, keep)
            if run.step >= optim.steps and run.step not in journal.evaluated:
                evaluate(run, model, journal, watcher)
            if run.step >= optim.steps and run.mean is not None:
                load_into(learning, run.mean)  # the module leaves with the weights that were saved
            if gates.fell:
                gates.bring_back(run, watcher)
            with contextlib.suppress(ImportError):  # curves need matplotlib, an extra
                if parallel.main_process():
                    log.draw_curves(folder)
        finally:
            journal.close()
            watcher.close()
    stopped_by = (stop[0] if stop else "another process") if stopping else None
    weights = folder / "weights.safetensors"
    finished = run.step >= optim.steps and gates.fell is None
    return FitResult(run.step, finished, stopped_by, gates.fell, losses, journal.evals, weights)


def mean_counts(
    stage: Stage[Any], held: list[tuple[Any, int]], refused: RebusError | None, accumulate: int
) -> tuple[Counts, str]:
    """What a batch holds in the mean over all processes and accumulated batches: losses that are divided by this have as
    their mean the loss of all that is learned in the step. And why some process has refused a batch, if one has."""
    own = [ready.counts if stage.prepare is not None else Counts(size) for ready, size in held]
    words, images, wrong = parallel.total(sum(c.words for c in own), sum(c.images for c in own), refused is not None)
    batches = parallel.world_size() * accumulate
    why = parallel.everyone("" if refused is None else str(refused)) if wrong else []
    return Counts(words / batches, images / batches), next(filter(None, why), "")


def summary(run: Run) -> dict[str, float]:
    """The record of the steps since the last one: means of their figures over all processes, and the highest rate. Begins
    a new window."""
    windows = parallel.everyone(run.window)
    steps = [values for window in windows for values in window]
    names = dict.fromkeys(name for values in steps for name in values)
    held = {name: [values[name] for values in steps if name in values] for name in names}
    run.window = []
    lr = max(group["lr"] for group in run.optimiser.param_groups)
    means = {name: sum(values) / len(values) for name, values in held.items()}
    return {"step": run.step, "lr": lr, **means, "samples": run.samples}


def report(journal: log.Journal, watcher: log.Reporter, record: dict[str, float]) -> None:
    """Log a record, on the first process, and show it."""
    parallel.together(lambda: journal.record(record))
    watcher.record(record)


def evaluate(run: Run, model: Any, journal: log.Journal, watcher: log.Reporter) -> None:
    """Run the stage's evaluations, the same on every process, and log what they yield. Their random draws leave those of
    the training alone."""
    if not run.stage.evals:
        return
    report(journal, watcher, {"step": run.step, **measure(run, run.stage.evals, model=model)})


def number_of(optim: Optim, device: torch.device) -> torch.dtype:
    """The number format that a forward pass is cast to."""
    return fast_dtype(device) if optim.precision == "auto" else AUTOCAST[optim.precision]


def casting(optim: Optim, device: torch.device) -> torch.autocast:
    """The context of a forward pass."""
    dtype = number_of(optim, device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def measure(run: Run, tasks: Iterable[Evaluation], *, model: Any) -> dict[str, float]:
    """What evaluations or batteries yield: without gradients, in evaluation mode, cast as while training (a frozen base may be held in another
    number format than what learns beside it), with random draws of their own."""
    run.stage.module.eval()
    cast = casting(run.stage.optim, run.device)
    try:
        with torch.no_grad(), isolated_random(run.device, 0), averaged(run), sharding.readable(model), cast:
            return {name: float(value) for task in tasks for name, value in task()}
    finally:
        set_modes(run.stage.module)


@contextlib.contextmanager
def averaged(run: Run) -> Iterator[None]:
    """The averaged weights in the module, where there are some, and the training's own back afterwards."""
    if run.mean is None:
        yield
        return
    own = {name: p.detach().clone() for name, p in run.learning.items()}
    load_into(run.learning, run.mean)
    try:
        yield
    finally:
        load_into(run.learning, own)


def describe(stage: Stage[Any], folder: Path, seed: int, table: list[Row], note: Callable[[str], None]) -> None:
    """Write the resolved config beside the weights, and note what a resumed run has changed in it."""
    held = {"stage": stage.name, "seed": seed, "config": stage.config, "optim": stage.optim, "trainable": table}
    before = checkpointing.read_json(folder / "config.json")
    for change in checkpointing.changes(before, checkpointing.plain(held)) if before else ():
        note(f"resumed with another setting: {change}")
    checkpointing.write_json(folder / "config.json", held)
