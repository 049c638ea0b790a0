"""A reply under way and its branches: one way that it may go, or with beam search several.

Dimension key: B branches · L words · D language-model width · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rebus.grammar import Modality
from rebus.narrate import Ending, Narrator
from rebus.sampling import Sampling


@dataclass(eq=False)
class Stream:
    """A row and what the model has not read of it yet."""

    row: int
    prompt_LD: Tensor | None = None
    """the prompt, until it is read"""
    read: list[int] = field(default_factory=list)
    """what the model has read of the reply; never changed in place, so that copies may share it"""
    unread: list[int] = field(default_factory=list)
    logits_V: Tensor | None = None
    """what the model says comes next, once all is read"""
    wanted: Tensor | None = None
    """what the image being written is to be, where the model says so before it writes codes"""


@dataclass(eq=False)
class Branch:
    """One way that a reply may go. A reply has one, or one for each beam."""

    main: Stream
    guide: Stream | None
    """the stream that knows the image being written and nothing else"""
    ids: list[int] = field(default_factory=list)
    score: float = 0.0
    """summed log-probability of the words that were free to choose"""
    inside: int | None = None
    """words of the image that is being written; None outside images"""
    still: float = 1.0
    """probability that the image being written would not have ended yet"""
    first: int | None = None
    """of the words that may come next the one that is decided on before the others"""
    unread_image: list[int] = field(default_factory=list)
    """which of `main.unread` are words of images, counted from its first"""
    hidden: list[Tensor] = field(default_factory=list)
    """hidden states of the words of images, as far as they are read, D each"""
    ending: Ending | None = None

    def copy(self) -> Branch:
        """A branch of its own, still on the same rows."""
        guide = None if self.guide is None else replace(self.guide, unread=list(self.guide.unread))
        main = replace(self.main, unread=list(self.main.unread))
        return replace(
            self,
            main=main,
            guide=guide,
            ids=list(self.ids),
            unread_image=list(self.unread_image),
            hidden=list(self.hidden),
        )


@dataclass(eq=False)
class Reply:
    """A reply under way or over."""

    prompt_LD: Tensor
    modality: Modality
    sampling: Sampling
    generator: torch.Generator | None
    budget: int
    """most words that it may have"""
    branches: list[Branch]
    narrator: Narrator
    rows: list[int] = field(default_factory=list)
    ended: list[Branch] = field(default_factory=list)
    """branches of a beam search that are complete"""
    told: int = 0
    """words that the narrator got"""

    @property
    def best(self) -> Branch:
        """The branch with the best score for its length."""
        return best(self.ended or self.branches, self.sampling.length_penalty)

    @property
    def ids(self) -> list[int]:
        """Words of the reply so far, the one that ends it included."""
        return self.best.ids

    @property
    def score(self) -> float:
        """Log-probability of the words that were free to choose."""
        return self.best.score


# ---------------------------------------------------------------------------------------------- beam search


class Hypothesis(Protocol):
    """What beam search needs to know of a branch."""

    ids: list[int]
    score: float


H = TypeVar("H", bound=Hypothesis)


def worth(score: float, length: int, penalty: float) -> float:
    """A hypothesis's log-probability over its length to the power of the penalty."""
    return score / max(length, 1) ** penalty


def best(branches: Sequence[H], penalty: float) -> H:
    """The hypothesis of the highest worth."""
    return max(branches, key=lambda b: worth(b.score, len(b.ids), penalty))


def children(branches: Sequence[tuple[float, Tensor]], count: int) -> list[tuple[int, int, float]]:
    """The likeliest continuations by one word of branches given as (score, scores_V): (branch, word, new score), best
    first, at most `count` and only words that are allowed."""
    totals_BV = torch.stack([score + scores_V for score, scores_V in branches])
    values, places = totals_BV.flatten().topk(min(count, totals_BV.numel()))
    width = totals_BV.shape[1]
    found = zip(values.tolist(), places.tolist(), strict=True)
    return [(place // width, place % width, value) for value, place in found if value > float("-inf")]


def is_settled(ended: Sequence[Hypothesis], live: Sequence[Hypothesis], sampling: Sampling, budget: int) -> bool:
    """Is there nothing left to find? A live hypothesis can only lose log-probability; what length may give it back is
    reckoned with, so this never stops too early."""
    if not live:
        return True
    if len(ended) < sampling.beams:
        return False
    penalty = sampling.length_penalty
    found = sorted((worth(b.score, len(b.ids), penalty) for b in ended), reverse=True)[: sampling.beams]
    hope = max(worth(b.score, budget if penalty > 0 else len(b.ids), penalty) for b in live)
    return found[-1] >= hope
