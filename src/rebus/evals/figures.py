"""What an evaluation yields: figures, each beside what chance, wrong targets and a perfect answer would get, and samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal, TypeVar

import PIL.Image

O = TypeVar("O")  # noqa: E741  an output
T = TypeVar("T")

SHIFTS = 8
"""How many different pairings with wrong targets are averaged."""


@dataclass(frozen=True)
class Figure:
    """One number about a system, and what it has to be read against. None where there is no such thing."""

    name: str
    """`task/what`, such as `draw/r_at_1`"""
    runs: tuple[float, ...]
    """the mean over all items, once for each sampling seed"""
    n: int
    """items of one run"""
    chance: float | None = None
    """what an answer that knows nothing of the question gets (`note` says which)"""
    shuffled: float | None = None
    """the same outputs scored against the targets of other items"""
    ceiling: float | None = None
    """what the protocol gives to answers that are right (`note` says which)"""
    better: Literal["higher", "lower", ""] = "higher"
    """which direction is good; empty where neither is"""
    note: str = ""
    """what is counted, and how chance and ceiling were measured"""

    @property
    def value(self) -> float:
        """The mean over the sampling seeds."""
        return sum(self.runs) / len(self.runs)

    @property
    def low(self) -> float:
        """The lowest of the runs."""
        return min(self.runs)

    @property
    def high(self) -> float:
        """The highest of the runs."""
        return max(self.runs)

    def __iter__(self) -> Iterator[str | float]:
        """As a pair: `name, value = figure`, which is what a training run logs."""
        yield self.name
        yield self.value


@dataclass(frozen=True, eq=False)
class Sample:
    """One item as it went: what was asked, what is right, what came. Pictures carry a word on what each is."""

    task: str
    asked: str
    wanted: str
    said: str
    score: float
    seed: int = 0
    pictures: tuple[tuple[str, PIL.Image.Image], ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Curve:
    """Figures that were measured at several settings, to be drawn over these."""

    name: str
    """the task"""
    over: str
    """what was set"""
    at: tuple[float, ...]
    """the settings"""
    figures: Mapping[str, Sequence[Figure]]
    """what was measured → its figure at each setting"""


Found = Figure | Sample | Curve


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def wrong_targets(count: int, groups: Sequence[Hashable] | None = None) -> list[list[int]]:
    """For every item the number of another item, in up to SHIFTS different ways; each item is used once in each.

    With `groups`, the other item is one of the same group (an item alone in its group keeps itself). Empty where no
    item has another one.
    """
    rng = Random(f"wrong targets {count}")
    of_group: dict[Hashable, list[int]] = {}
    for i in range(count):
        of_group.setdefault(groups[i] if groups is not None else None, []).append(i)
    largest = max(map(len, of_group.values()), default=0)
    pairings = []
    for members in of_group.values():
        rng.shuffle(members)
    for k in range(1, min(SHIFTS, largest - 1) + 1):
        pairing = list(range(count))
        for members in of_group.values():
            for place, i in enumerate(members):
                pairing[i] = members[(place + k) % len(members)]
        pairings.append(pairing)
    return pairings


def against_wrong(
    score: Callable[[O, T], float],
    runs: Sequence[Sequence[O]],
    targets: Sequence[T],
    groups: Sequence[Hashable] | None = None,
) -> float | None:
    """The mean score of outputs against the targets of other items; None where no item has another one."""
    scores = [
        score(output, targets[other])
        for outputs in runs
        for pairing in wrong_targets(len(targets), groups)
        for output, other in zip(outputs, pairing, strict=True)
    ]
    return mean(scores) if scores else None


def compare(
    name: str,
    score: Callable[[O, T], float],
    runs: Sequence[Sequence[O]],
    targets: Sequence[T],
    *,
    chance: Sequence[O] | float | None = None,
    ceiling: Sequence[O] | float | None = None,
    groups: Sequence[Hashable] | None = None,
    better: Literal["higher", "lower", ""] = "higher",
    note: str = "",
) -> Figure:
    """The figure `mean of score(output, target)` of each run, with its comparisons.

    `runs` holds the outputs of each sampling seed, in the order of `targets`. `chance` and `ceiling` are outputs that
    are scored in the same way, or numbers. Wrong targets are taken from the same group.
    """

    def average(outputs: Sequence[O]) -> float:
        return mean([score(output, target) for output, target in zip(outputs, targets, strict=True)])

    def given(outputs: Sequence[O] | float | None) -> float | None:
        return outputs if outputs is None or isinstance(outputs, int | float) else average(outputs)

    return Figure(
        name,
        tuple(average(outputs) for outputs in runs),
        n=len(targets),
        chance=given(chance),
        shuffled=against_wrong(score, runs, targets, groups),
        ceiling=given(ceiling),
        better=better,
        note=note,
    )
