"""A mixture: several sources by weight, in an order that is a pure function of the seed and the position.

Every run of BLOCK positions holds each source exactly as often as its weight says (to one), in shuffled order; each
source is gone through in an order of its own, shuffled anew every epoch. So the state of a run is its position.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any

from rebus.data.sources import Documents, Unreadable
from rebus.document import Document
from rebus.errors import RebusError

BLOCK = 1000
"""Positions within which the weights are kept exactly."""


@dataclass(frozen=True)
class Place:
    """Where a position of the mixture points to."""

    source: str
    index: int
    epoch: int
    """How often the source has been gone through before."""


class Mixture:
    """Documents of `sources`, `{name: source}`, drawn by `weights`, `{name: weight}` (equal if left out).

    Addressed by position, without end: `mixture[10**9]` is as good as `mixture[0]`. Iterating goes on from
    `position`, skips members that cannot be read and counts them by source in `skipped`. Raises RebusError if a source
    is empty or a weight has no source.
    """

    def __init__(
        self, sources: Mapping[str, Documents], weights: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        weights = dict.fromkeys(sources, 1.0) if weights is None else weights
        if not sources or set(weights) != set(sources) or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise RebusError(
                f"A mixture needs a weight of 0 or more for each of its sources, but the sources are {list(sources)} "
                f"and the weights {dict(weights)}. Give both the same names."
            )
        if empty := [name for name, source in sources.items() if len(source) == 0]:
            raise RebusError(f"The sources {', '.join(empty)} hold no documents. Check their paths, or leave them out.")
        self.sources, self.seed = dict(sources), seed
        self.position = 0
        self.skipped: Counter[str] = Counter()
        self._quota = _quotas(weights)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def place(self, position: int) -> Place:
        """Which document of which source stands at `position`."""
        block, offset = divmod(position, BLOCK)
        name, before = self._block(block)[offset]
        taken, count = block * self._quota[name] + before, len(self.sources[name])
        epoch, index = divmod(taken, count)
        if getattr(self.sources[name], "endless", False):
            return Place(name, taken, epoch)
        return Place(name, shuffled(index, count, f"{self.seed} {name} {epoch}"), epoch)

    def __getitem__(self, position: int) -> Document:
        place = self.place(position)
        return self.sources[place.source][place.index]

    def __iter__(self) -> Iterator[Document]:
        in_vain = 0
        while True:
            place = self.place(self.position)
            self.position += 1
            try:
                document = self.sources[place.source][place.index]
            except Unreadable as error:
                self.skipped[place.source] += 1
                in_vain += 1
                if in_vain >= BLOCK:
                    raise RebusError(f"{BLOCK} members in a row could not be read. The last one: {error}") from error
                continue
            in_vain = 0
            yield document

    def state_dict(self) -> dict[str, Any]:
        """The position, and what was skipped."""
        return {"position": self.position, "skipped": dict(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.position, self.skipped = state["position"], Counter(state["skipped"])

    def _make_block(self, block: int) -> list[tuple[str, int]]:
        """For each position of a block its source, and how many of that source came before it in the block."""
        names = [name for name, quota in self._quota.items() for _ in range(quota)]
        Random(f"mixture {self.seed} block {block}").shuffle(names)
        seen: Counter[str] = Counter()
        placed = []
        for name in names:
            placed.append((name, seen[name]))
            seen[name] += 1
        return placed


def shuffled(index: int, count: int, key: str) -> int:
    """Where a permutation of 0 … count - 1, chosen by `key`, takes `index`; nothing of the length of `count` is held.

    A Feistel network over the next even number of bits is a permutation; what falls outside is sent through again.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(4):
            digest = hashlib.blake2b(f"{key} {number} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        index = left << half | right
        if index < count:
            return index


def _quotas(weights: Mapping[str, float]) -> dict[str, int]:
    """How many positions of a block each source gets: proportional, at least one where the weight is not zero."""
    total = sum(weights.values())
    exact = {name: weight / total * BLOCK for name, weight in weights.items()}
    quotas = {name: max(int(share), 1 if share > 0 else 0) for name, share in exact.items()}
    by_rest = sorted(exact, key=lambda name: exact[name] - quotas[name], reverse=True)
    while (missing := BLOCK - sum(quotas.values())) != 0:
        for name in by_rest[:missing] if missing > 0 else [max(quotas, key=quotas.__getitem__)]:
            quotas[name] += 1 if missing > 0 else -1
    return quotas
