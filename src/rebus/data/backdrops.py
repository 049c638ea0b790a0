"""What is behind the pictures: plain colours and simple patterns, and how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rebus.data.wording import article

SIDE = 128
"""Scenes and patterns are laid out on a canvas of this many pixels square."""

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "light grey": (215, 217, 220),
    "light blue": (190, 222, 245),
    "light green": (200, 235, 195),
    "pale yellow": (252, 243, 190),
    "pink": (250, 200, 215),
    "lavender": (220, 208, 245),
    "beige": (238, 224, 200),
    "orange": (245, 165, 70),
    "turquoise": (80, 200, 195),
    "dark blue": (30, 50, 110),
    "dark green": (25, 85, 55),
    "brown": (125, 85, 55),
    "purple": (125, 70, 165),
    "grey": (130, 133, 138),
    "black": (15, 15, 18),
}
Pattern = Literal["plain", "striped", "chequered", "dotted", "gradient", "speckled"]


@dataclass(frozen=True)
class Backdrop:
    """What is behind the pictures: one colour, or a pattern of two."""

    pattern: Pattern = "plain"
    first: str = "white"
    second: str = "white"
    cell: int = 16
    """Pixels of one stripe, square or dot, at 128 px."""

    @property
    def words(self) -> str:
        """`a light blue background`, `a chequered pink and white background`."""
        if self.pattern == "plain":
            return article(f"{self.first} background")
        return article(f"{self.pattern} {self.first} and {self.second} background")


def random_backdrop(rng: Random, *, white: float = 0.5, plain: float = 0.3) -> Backdrop:
    """White with probability `white`, another plain colour with probability `plain`, else a pattern."""
    chance = rng.random()
    if chance < white:
        return Backdrop()
    first, second = rng.sample(list(COLOURS), 2)
    if chance < white + plain:
        return Backdrop("plain", first)
    pattern: Pattern = rng.choice(("striped", "chequered", "dotted", "gradient", "speckled"))
    return Backdrop(pattern, first, second, rng.choice((8, 12, 16, 24)))


@lru_cache(maxsize=256)
def _mask(pattern: Pattern, cell: int, side: int) -> NDArray[np.float32]:
    """[side, side]: how much of the second colour is where."""
    y, x = np.mgrid[:side, :side] * (SIDE / side)
    match pattern:
        case "striped":
            share = ((x + y * (cell % 3 - 1)) // cell) % 2
        case "chequered":
            share = (x // cell + y // cell) % 2
        case "dotted":
            share = (x % (2 * cell) - cell) ** 2 + (y % (2 * cell) - cell) ** 2 < (0.45 * cell) ** 2
        case "speckled":
            share = np.random.default_rng(cell).random((side, side)) < 0.15
        case _:
            share = (y if cell % 3 else x) / SIDE
    return share.astype(np.float32)


def draw_backdrop(backdrop: Backdrop, side: int = SIDE) -> NDArray[np.uint8]:
    """[side, side, 3]."""
    first = np.array(COLOURS[backdrop.first], np.float32)
    if backdrop.pattern == "plain":
        return np.broadcast_to(first.astype(np.uint8), (side, side, 3))
    second = np.array(COLOURS[backdrop.second], np.float32)
    share = _mask(backdrop.pattern, backdrop.cell, side)[..., None]
    return (first + (second - first) * share).astype(np.uint8)
