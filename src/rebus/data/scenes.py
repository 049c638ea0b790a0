"""Scenes: one to four pictures placed on a backdrop, with the boxes known and a sentence that says what is where.

A scene is a description (`Scene`); `render` makes its pixels, `describe` its sentence. Both are pure, so that a scene is
the same wherever it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Literal

import PIL.Image

from rebus.data.backdrops import SIDE, Backdrop, draw_backdrop, random_backdrop
from rebus.data.pictures import Pictures
from rebus.data.wording import article, countable, plural
from rebus.document import Box


@dataclass(frozen=True)
class Placed:
    """One picture in a scene; centre and side in pixels of a 128 px canvas."""

    row: int
    x: int
    y: int
    side: int

    @property
    def box(self) -> Box:
        """Its square, as fractions of the scene, cut at the scene's edges."""
        left, right = (min(max(v / SIDE, 0.0), 1.0) for v in (self.x - self.side / 2, self.x + self.side / 2))
        top, bottom = (min(max(v / SIDE, 0.0), 1.0) for v in (self.y - self.side / 2, self.y + self.side / 2))
        return Box((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


Layout = Literal["one", "beside", "stacked", "row", "same", "counts", "corners"]


@dataclass(frozen=True)
class Scene:
    """What is where. `placed` is in the order in which the sentence names things (left to right, top to bottom)."""

    layout: Layout
    placed: tuple[Placed, ...]
    backdrop: Backdrop


class Things:
    """The pictures of a split that may stand in a scene: plain pictures of single, countable things, by weight."""

    GROUPS = ("animals-nature", "food-drink", "objects", "activities", "travel-places")
    NOT = ("time", "hotel", "place-geographic", "place-map", "place-other", "event")

    def __init__(self, pictures: Pictures, split: str) -> None:
        self.rows = [
            int(row)
            for row in pictures.rows(split)
            if pictures.group[row] in self.GROUPS
            and pictures.subgroup[row] not in self.NOT
            and not pictures.skin_tone[row]
            and not pictures.gender[row]
            and countable(pictures.label[row])
        ]
        self._pictures = pictures
        self._by_style: dict[tuple[str, str], list[int]] = {}
        for row in self.rows:
            self._by_style.setdefault((pictures.family[row], pictures.variant[row]), []).append(row)
        self._weights = {style: self._sum(rows) for style, rows in self._by_style.items()}
        self._all_weights = self._sum(self.rows)

    def _sum(self, rows: Sequence[int]) -> list[float]:
        return list(accumulate(self._pictures.weight[row] for row in rows))

    def pick(self, rng: Random, count: int) -> list[int]:
        """Rows of `count` pictures of different names, four times out of five of one style."""
        first = rng.choices(self.rows, cum_weights=self._all_weights)[0]
        style = (self._pictures.family[first], self._pictures.variant[first])
        pool, weights = self.rows, self._all_weights
        if rng.random() < 0.8 and len(self._by_style[style]) > 2 * count:
            pool, weights = self._by_style[style], self._weights[style]
        rows = [first]
        labels = {self._pictures.label[first]}
        for _ in range(50 * count):
            if len(rows) == count:
                break
            row = rng.choices(pool, cum_weights=weights)[0]
            if self._pictures.label[row] not in labels:
                rows.append(row)
                labels.add(self._pictures.label[row])
        return rows

    def pick_other(self, labels: set[str], rng: Random) -> int:
        """The row of a picture that has none of these names, nor one that shares a word with them."""
        words = {word for label in labels for word in label.split()}
        row = rng.choices(self.rows, cum_weights=self._all_weights)[0]
        for _ in range(50):
            if not words & set(self._pictures.label[row].split()):
                break
            row = rng.choices(self.rows, cum_weights=self._all_weights)[0]
        return row


PLACES = {
    "in the top left corner": (36, 36),
    "at the top": (64, 34),
    "in the top right corner": (92, 36),
    "on the left": (34, 64),
    "in the middle": (64, 64),
    "on the right": (94, 64),
    "in the bottom left corner": (36, 92),
    "at the bottom": (64, 94),
    "in the bottom right corner": (92, 92),
}
_LAYOUTS: tuple[Layout, ...] = ("one", "beside", "stacked", "row", "same", "counts", "corners")


def random_scene(things: Things, rng: Random, layout: Layout | None = None) -> Scene:
    """A scene of pictures among `things`."""
    layout = layout or rng.choices(_LAYOUTS, weights=(2, 3, 2, 1, 3, 1, 1))[0]
    jitter = lambda amount: rng.randint(-amount, amount)  # noqa: E731
    placed: list[Placed]
    match layout:
        case "one":
            x, y = rng.choice(list(PLACES.values()))
            side = rng.randint(72, 112) if (x, y) == (64, 64) else rng.randint(44, 64)
            placed = [Placed(things.pick(rng, 1)[0], x + jitter(4), y + jitter(4), side)]
        case "beside" | "stacked":
            rows, side = things.pick(rng, 2), rng.randint(42, 60)
            spots = [(34 + jitter(3), 64 + jitter(14)), (94 + jitter(3), 64 + jitter(14))]
            spots = spots if layout == "beside" else [(y, x) for x, y in spots]
            placed = [Placed(row, *spot, side) for row, spot in zip(rows, spots, strict=False)]
        case "row":
            rows, side = things.pick(rng, 3), rng.randint(34, 42)
            placed = [Placed(row, 22 + 42 * i, 64 + jitter(16), side) for i, row in enumerate(rows)]
        case "same":
            count = rng.randint(2, 4)
            placed = _spread(things.pick(rng, 1) * count, rng)
        case "counts":
            (one, other), many = things.pick(rng, 2), rng.randint(2, 3)
            placed = _spread([one] * many + [other], rng)
        case "corners":
            spots = [(34, 34), (94, 34), (34, 94), (94, 94)]
            placed = [
                Placed(r, x, y, rng.randint(44, 56)) for r, (x, y) in zip(things.pick(rng, 4), spots, strict=False)
            ]
    return Scene(layout, tuple(placed), random_backdrop(rng))


def _spread(rows: list[int], rng: Random) -> list[Placed]:
    """Two to four pictures where there is room: in a row, a triangle or a square."""
    spots = {
        2: [(34, 64), (94, 64)],
        3: [(34, 36), (94, 36), (64, 92)] if rng.random() < 0.5 else [(22, 64), (64, 64), (106, 64)],
        4: [(34, 34), (94, 34), (34, 94), (94, 94)],
    }[len(rows)]
    side = rng.randint(34, 40) if (64, 64) in spots else rng.randint(42, 54)
    return [
        Placed(row, x + rng.randint(-3, 3), y + rng.randint(-3, 3), side)
        for row, (x, y) in zip(rows, spots, strict=True)
    ]


def render(pictures: Pictures, scene: Scene) -> PIL.Image.Image:
    """The scene as a 128 x 128 RGB picture."""
    canvas = PIL.Image.fromarray(draw_backdrop(scene.backdrop))
    for placed in scene.placed:
        picture, corner = cutout(pictures, placed)
        canvas.paste(picture, corner, picture)
    return canvas


def cutout(pictures: Pictures, placed: Placed) -> tuple[PIL.Image.Image, tuple[int, int]]:
    """One thing of a scene as an RGBA picture, and where its upper left corner lies."""
    rgba_hw = pictures.rgba_N[placed.row] if placed.side <= 64 else pictures.rgba_128(placed.row)
    picture = PIL.Image.fromarray(rgba_hw)
    if picture.width != placed.side:
        picture = picture.resize(
            (placed.side, placed.side),
            PIL.Image.Resampling.BOX if placed.side > 64 else PIL.Image.Resampling.BILINEAR,
        )
    return picture, (placed.x - placed.side // 2, placed.y - placed.side // 2)


def exact_box(pictures: Pictures, placed: Placed) -> Box:
    """The smallest box around what is seen of one thing, as fractions of the scene; its square, where nothing is."""
    picture, (left, top) = cutout(pictures, placed)
    inside = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if inside is None:
        return placed.box
    x, y, right, bottom = (
        min(max(at + by, 0), SIDE) / SIDE for at, by in zip(inside, (left, top, left, top), strict=True)
    )
    return Box((x + right) / 2, (y + bottom) / 2, right - x, bottom - y)


NUMBERS = ("no", "one", "two", "three", "four")


def describe(pictures: Pictures, scene: Scene, rng: Random) -> str:
    """One sentence (without capital and full stop) that says what is where."""
    labels = [pictures.label[placed.row] for placed in scene.placed]
    a = [article(label) for label in labels]
    match scene.layout:
        case "one":
            x, y = scene.placed[0].x, scene.placed[0].y
            place = min(PLACES, key=lambda words: (PLACES[words][0] - x) ** 2 + (PLACES[words][1] - y) ** 2)
            text = f"{a[0]} {place}"
        case "beside":
            text = rng.choice(
                (
                    f"{a[0]} to the left of {a[1]}",
                    f"{a[0]} left of {a[1]}",
                    f"{a[1]} to the right of {a[0]}",
                    f"{a[0]} on the left and {a[1]} on the right",
                    f"{a[0]} next to {a[1]}",
                )
            )
        case "stacked":
            text = rng.choice(
                (f"{a[0]} above {a[1]}", f"{a[1]} below {a[0]}", f"{a[0]} at the top and {a[1]} at the bottom")
            )
        case "row":
            text = rng.choice((f"{a[0]}, {a[1]} and {a[2]} in a row", f"from left to right: {a[0]}, {a[1]} and {a[2]}"))
        case "same":
            text = f"{NUMBERS[len(labels)]} {plural(labels[0])}"
        case "counts":
            text = f"{NUMBERS[len(labels) - 1]} {plural(labels[0])} and {a[-1]}"
        case "corners":
            text = f"{a[0]} at the top left, {a[1]} at the top right, {a[2]} at the bottom left and {a[3]} at the bottom right"
    if scene.backdrop != Backdrop() and rng.random() < 0.6:
        text += f", on {scene.backdrop.words}"
    return text
