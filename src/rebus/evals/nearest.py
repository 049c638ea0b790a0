"""Real pictures as the measure of drawn ones: the name of the nearest real picture is what a drawing shows.

No head is trained for it: names come from pictures, and pictures are compared by the features of the scorer.

Dimension key: I pictures that are named · G pictures of the gallery · C feature width
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

import PIL.Image
import torch
from torch import Tensor

from rebus.data.pictures import Pictures, plain_rows
from rebus.errors import RebusError

Look = Callable[[Sequence[PIL.Image.Image]], Tensor]


def choose(
    pictures: Pictures, split: str, n: int, seed: int, among: Callable[[int], bool] = lambda row: True
) -> list[int]:
    """Up to `n` plain pictures of a split: one of every concept in random order, then second ones, and so on.

    Raises RebusError where there is none.
    """
    rng = Random(f"eval {split} {seed}")
    rows = [row for row in plain_rows(pictures, split) if among(row)]
    if not rows:
        raise RebusError(
            f"The split {split!r} of {pictures!r} has no picture that this task can ask about. "
            "Build the whole set with `rebus data emoji`, or name another split."
        )
    rng.shuffle(rows)
    seen: dict[str, int] = {}
    turn = {}
    for row in rows:
        turn[row] = seen.get(pictures.concept[row], 0)
        seen[pictures.concept[row]] = turn[row] + 1
    return sorted(rows, key=lambda row: turn[row])[:n]  # a stable sort: the order within a turn stays random


class RealPictures:
    """Feature vectors of the embedded pictures, each computed when it is first asked for."""

    def __init__(self, pictures: Pictures, look: Look, side: int = 64) -> None:
        self.pictures, self.look, self.side = pictures, look, side
        self._known: dict[int, Tensor] = {}

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """[I, C] of pictures on white, in the order of `rows`."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._known]
        if missing:
            images = [self.pictures.image(row, self.side) for row in missing]
            self._known.update(zip(missing, self.look(images), strict=True))
        return torch.stack([self._known[row] for row in rows])


@dataclass(frozen=True, eq=False)
class Gallery:
    """Real pictures of a number of names."""

    rows: list[int]
    concepts: list[str]
    """the concept of each of `rows`"""
    x_GC: Tensor

    @property
    def names(self) -> int:
        """Different concepts."""
        return len(set(self.concepts))

    def nearest(self, x_IC: Tensor, *, without: Sequence[int] | None = None) -> list[int]:
        """The row of the nearest picture of each vector; `without` names for each a row that does not count."""
        return [self.rows[g] for g in self._likeness(x_IC, without).argmax(1).tolist()]

    def ranks(self, x_IC: Tensor, *, without: Sequence[int] | None = None) -> list[dict[str, int]]:
        """Of each vector the place of every concept, from 1, when concepts are ordered by their nearest picture."""
        names = sorted(set(self.concepts))
        places_G = torch.tensor([names.index(concept) for concept in self.concepts])
        likeness_IG = self._likeness(x_IC, without)
        best_IN = torch.full((len(x_IC), len(names)), -torch.inf)
        best_IN = best_IN.scatter_reduce(1, places_G.expand(len(x_IC), -1), likeness_IG, "amax")
        order_IN = best_IN.argsort(dim=1, descending=True)
        return [{names[n]: rank for rank, n in enumerate(order, 1)} for order in order_IN.tolist()]

    def _likeness(self, x_IC: Tensor, without: Sequence[int] | None) -> Tensor:
        likeness_IG = x_IC @ self.x_GC.T
        places = {row: g for g, row in enumerate(self.rows)}
        for i, row in enumerate(without or []):
            if row in places:
                likeness_IG[i, places[row]] = -torch.inf
        return likeness_IG


def gallery(real: RealPictures, asked: Collection[int], names: int, seed: int) -> Gallery:
    """All plain `train` pictures of `names` concepts: those of the rows asked about, then others at random.

    A concept that training never saw (split `concepts`, part of `val`) has no such pictures; it is represented by the
    plain pictures of its own split, the one asked about among them left out by whoever scores real pictures.
    """
    pictures = real.pictures
    concepts = list(dict.fromkeys(pictures.concept[row] for row in asked))
    rows_of: dict[str, list[int]] = {}
    for row in plain_rows(pictures, "train"):
        rows_of.setdefault(pictures.concept[row], []).append(row)
    unseen = {concept for concept in concepts if concept not in rows_of}
    others = sorted(set(rows_of) - set(concepts))
    Random(f"gallery {seed}").shuffle(others)
    concepts += others[: max(0, names - len(concepts))]
    for split in sorted({pictures.split[row] for row in asked}):
        for row in plain_rows(pictures, split):
            if pictures.concept[row] in unseen:
                rows_of.setdefault(pictures.concept[row], []).append(row)
    rows = [row for concept in concepts for row in rows_of[concept]]
    return Gallery(rows, [pictures.concept[row] for row in rows], real.vectors(rows))
