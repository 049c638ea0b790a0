"""A stage of training as data: which module, what in it learns at which rate, from which batches, by which loss."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.sequence import Counts

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


Evaluation = Callable[[], Iterable[tuple[str, float]]]
"""Yields (name, value)."""


class HasTotal(Protocol):
    """What a step returns: any dataclass with the scalar `total` to descend; its other fields are logged by name."""

    @property
    def total(self) -> Tensor: ...


class Prepared(Protocol):
    """A batch made ready: what its losses are means over, and the same batch with losses divided by something else.
    `rebus.sequence.Collated` is one."""

    @property
    def counts(self) -> Counts: ...
    def divided(self, over: Counts) -> Any: ...


@dataclass(frozen=True)
class Losses:
    """A loss with named parts, for stages that have no loss type of their own."""

    total: Tensor
    """the scalar that is differentiated"""
    parts: Mapping[str, Tensor | float] = field(default_factory=dict)
    """scalars to log: the terms of `total`, or figures such as accuracy or codes in use"""


@runtime_checkable
class Resumable(Protocol[B_co]):
    """Batches with a position. `state_dict` is made of plain values and tensors, and speaks of the batches already
    handed out: a source moves its position before it yields. When `__iter__` is exhausted, it is called again."""

    def __iter__(self) -> Iterator[B_co]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Trainable:
    """Parameters that learn. The first pattern that matches a name decides; a name that none matches is frozen."""

    pattern: str
    """shell pattern over the parameter's full name, `*` crossing dots: `lm.*lora_*`, `qformer.*`, `*`"""
    lr: float
    """peak learning rate; 0 keeps what matches frozen"""
    weight_decay: float | None = None
    """decoupled weight decay; None takes the stage's"""


@dataclass(frozen=True)
class Optim:
    """AdamW and its surroundings."""

    steps: int
    """optimiser steps of the whole run"""
    warmup: int | float = 0
    """linear warm-up: a number of steps (int) or a fraction of the run (float)"""
    warmup_start: float = 0.0
    """rate at the start of the warm-up, as a share of the peak"""
    schedule: Literal["cosine", "linear", "constant", "per_epoch_cosine", "per_batch_cosine"] = "cosine"
    """how the rate falls after the warm-up; per_epoch_cosine (SEED stages 1 and 2) holds it for `epoch_steps` each;
    per_batch_cosine (the published SEED-X) counts batches as steps, so that with `accumulate` above 1 it ends early and
    rises again"""
    epoch_steps: int = 5000
    """steps that per_epoch_cosine calls an epoch"""
    min_lr_ratio: float = 0.0
    """rate at the end, as a share of the peak"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two decay rates"""
    eps: float = 1e-8
    """AdamW's epsilon"""
    weight_decay: float = 0.0
    """decoupled weight decay of parameters whose Trainable names none"""
    decay: Literal["matrices", "all"] = "matrices"
    """what decays: parameters of two or more axes (not biases and norms), or all (SEED-X)"""
    clip: float | None = 1.0
    """largest norm of the whole gradient; None does not clip"""
    accumulate: int = 1
    """batches per optimiser step; the loss is the mean over all that is in them"""
    ema: float | None = None
    """decay of the average of the weights, warmed up as (1 + n) / (10 + n); None keeps no average"""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """autocast type of the forward pass; auto is bf16 where the device multiplies it natively, else fp32; fp16 adds a
    loss scaler. Weights that learn are float32 in all of them"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.accumulate < 1 or self.epoch_steps < 1:
            raise RebusError(
                "Steps are counted from one: "
                f"steps={self.steps}, accumulate={self.accumulate}, epoch_steps={self.epoch_steps}. Give at least 1 each."
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise RebusError(
                f"The warm-up does not fit in the run: warmup={self.warmup} with steps={self.steps}. "
                "Give a number of steps (int), or a fraction of the run between 0 and 1 (float)."
            )
        if self.ema is not None and not 0 <= self.ema < 1:
            raise RebusError(f"The average's decay lies in [0, 1), but ema={self.ema}. Use 0.999 or so, or None.")
        if self.clip is not None and self.clip <= 0:
            raise RebusError(f"A gradient cannot be clipped to norm {self.clip}. Use 1.0 or so, or None not to clip.")

    @property
    def warmup_steps(self) -> int:
        """The warm-up in steps."""
        return round(self.warmup * self.steps) if isinstance(self.warmup, float) else self.warmup


@dataclass(frozen=True)
class Margin:
    """How far a figure may fall."""

    fall: float
    """the largest loss that is let pass, in the figure's own unit, or as a share of what it is held against"""
    better: Literal["higher", "lower"] = "higher"
    """which direction is good; of a perplexity `lower`"""
    relative: bool = False
    """whether `fall` is a share"""
    against: Literal["best", "start"] = "best"
    """what a figure is held against: the best of the run so far, or its value before the first step"""

    def __post_init__(self) -> None:
        if not self.fall >= 0:
            raise RebusError(f"A margin is how far a figure may fall, but this one is {self.fall}. Give 0 or more.")

    def fallen(self, before: list[float], now: float) -> float | None:
        """What `now` is held against, if it lies too far below it; `before` are the earlier values, the oldest first.
        What is not a number has fallen."""
        before = [value for value in before if math.isfinite(value)]
        if not before:
            return None
        held = before[0] if self.against == "start" else (max if self.better == "higher" else min)(before)
        allowed = self.fall * (abs(held) if self.relative else 1.0) + 1e-9 * abs(held)  # 0.8 - 0.7 is not 0.1
        loss = held - now if self.better == "higher" else now - held
        return None if loss <= allowed else held


@dataclass(frozen=True)
class Gate:
    """A battery of measurements, and what of it must not fall."""

    battery: Evaluation
    """yields (name, value); run without gradients, in evaluation mode, on the averaged weights where there are some. What
    it asks and draws should be the same every time"""
    every: int
    """steps between two measurements; one comes before the first step and one after the last, too"""
    margins: Mapping[str, Margin]
    """the figures that are watched; others are only logged"""
    then: Literal["stop", "warn"] = "stop"
    """what happens when one falls: `stop` ends the run with the last good weights, `warn` says so and goes on"""

    def __post_init__(self) -> None:
        if self.every < 1 or not self.margins:
            raise RebusError(
                f"A gate measures every so many steps and watches something, but every={self.every} and it watches "
                f"{len(self.margins)} figures. Give at least 1 of both."
            )


@dataclass
class Stage(Generic[B]):
    """One run of training. Generic in its batch: `step` receives what `data` yields (documents, or cached features)."""

    name: str
    """what logs and error messages call it, such as `seed.stage1_qformer`"""
    module: nn.Module
    """everything the step computes with, frozen parts too; names in `trainable` are names in it"""
    step: Callable[[Any, Any], HasTotal]
    """loss of one batch, or of what `prepare` made of it, run under autocast. Without `prepare` it is a mean over the
    samples of the batch"""
    trainable: list[Trainable]
    """what learns at which rate"""
    data: Resumable[B]
    """where batches come from"""
    optim: Optim
    """the optimiser and its schedule"""
    evals: list[Evaluation] = field(default_factory=list)
    """each yields (name, value); run without gradients, in evaluation mode, on the averaged weights where there are some"""
    gates: list[Gate] = field(default_factory=list)
    """abilities that the run must not lose"""
    config: Any = None
    """the stage's frozen dataclass, written beside the weights"""
    generators: dict[str, torch.Generator] = field(default_factory=dict)
    """generators that `step` draws from; their states are part of a checkpoint"""
    prepare: Callable[[Any, B], Prepared] | None = None
    """what of a step needs no gradients and no part that learns, such as turning documents into rows. It says what the
    losses are means over, so that these are divided by the counts of all processes and accumulated batches together"""


@dataclass(frozen=True)
class Row:
    """One line of the table of what is trainable."""

    pattern: str
    """the pattern, or `(frozen)` for what is left"""
    tensors: int
    """parameters tensors that it decides"""
    parameters: int
    """numbers in them"""
    lr: float
    """peak learning rate"""


def matches(module: nn.Module, trainable: list[Trainable]) -> list[tuple[Trainable, dict[str, nn.Parameter]]]:
    """The parameters that each pattern decides, tied ones under their first name.

    Raises RebusError where a pattern decides none, a rate is negative, or nothing at all would learn.
    """
    named = dict(module.named_parameters())
    left = dict(named)
    found = []
    for entry in trainable:
        if entry.lr < 0:
            raise RebusError(f"A learning rate is not negative: {entry.pattern!r} has {entry.lr}. Use 0 to freeze.")
        taken = {name: p for name, p in left.items() if fnmatch.fnmatchcase(name, entry.pattern)}
        if not taken:
            others = [name for name in named if fnmatch.fnmatchcase(name, entry.pattern)]
            why = f"all {len(others)} that match are taken by earlier patterns" if others else "no name matches"
            raise RebusError(
                f"The pattern {entry.pattern!r} decides no parameter: {why}; the names look like "
                f"{', '.join(list(left or named)[:3])}. Correct the pattern or the order of the list."
            )
        left = {name: p for name, p in left.items() if name not in taken}
        found.append((entry, taken))
    if not any(entry.lr > 0 for entry in trainable):
        raise RebusError(
            f"Nothing would learn: {len(named)} parameters, {len(trainable)} patterns, none with a learning rate above 0. "
            "Name what trains in the stage's `trainable`."
        )
    return found


def trainable_table(module: nn.Module, trainable: list[Trainable]) -> list[Row]:
    """What learns at which rate: a row for each pattern, then one for everything frozen. Errors as in `matches`."""
    found = matches(module, trainable)
    rows = [Row(e.pattern, len(ps), sum(p.numel() for p in ps.values()), e.lr) for e, ps in found]
    every = list(module.parameters())
    tensors = len(every) - sum(r.tensors for r in rows)
    return [*rows, Row("(frozen)", tensors, sum(p.numel() for p in every) - sum(r.parameters for r in rows), 0.0)]


def named_values(losses: HasTotal) -> dict[str, Tensor | float]:
    """`loss` (the total) and every other scalar of a loss dataclass under its field's name; a mapping gives its items."""
    values: dict[str, Tensor | float] = {"loss": losses.total}
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(losses) if dataclasses.is_dataclass(losses) else ()
    for name in (f.name for f in fields if f.name != "total"):
        value = getattr(losses, name)
        if isinstance(value, Mapping):
            values.update(value)
        elif isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1):
            values[name] = value
    return values | {"loss": losses.total}
