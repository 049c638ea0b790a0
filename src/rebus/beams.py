"""Beam search: which continuations live on, and when no longer reply can be better than those found.

Dimension key: B branches · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rebus.sampling import Sampling


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
