"""Many small captioned images at once, for training the parts that see and draw.

Dimension key: N images of a bank, h w height and width in pixels
"""

from __future__ import annotations

from itertools import accumulate
from random import Random

import numpy as np
import PIL.Image
import PIL.ImageDraw
from numpy.typing import NDArray

from rebus.data.backdrops import SIDE, draw_backdrop, random_backdrop
from rebus.data.lettering import letter, vocabulary
from rebus.data.pictures import Pictures, over
from rebus.data.scenes import Things, describe, random_scene, render
from rebus.data.selection import foreign_names
from rebus.data.wording import article, named, style_name
from rebus.errors import RebusError

KINDS = ("single", "scene", "crop", "words", "shapes")
SHARES = {"single": 0.6, "scene": 0.16, "crop": 0.12, "words": 0.06, "shapes": 0.06}
"""How large a part of a bank each kind makes up."""

_CHUNK = 1024
_SHAPES = ("circle", "square", "triangle", "ring", "star", "diamond", "rectangle", "cross")
_SHAPE_COLOURS = {
    "red": (225, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 210, 40),
    "green": (60, 165, 75),
    "blue": (45, 100, 220),
    "purple": (140, 70, 180),
    "pink": (245, 130, 175),
    "brown": (130, 85, 50),
    "black": (20, 20, 22),
    "grey": (135, 138, 142),
}


def bank(
    pictures: Pictures, split: str, n: int, seed: int, size: int = 64, shares: dict[str, float] = SHARES
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """`n` images [n, size, size, 3], a caption and the kind (one of KINDS) of each, in random order.

    Single pictures are drawn by weight, mostly whole on white, else moved a little, on other backdrops. Scenes are
    rendered at 128 px and reduced, crops are cut from such scenes; words and simple shapes are drawn. The same
    arguments give the same bank. Only pictures and names of `split` occur. Raises RebusError for an unknown split or
    a size other than 64 or 128.
    """
    if size not in (64, 128):
        raise RebusError(
            f"A bank's images are 64 or 128 pixels square, but {size} was asked for. Choose one of the two."
        )
    rng = Random(f"bank {split} {seed}")
    kinds = rng.choices(list(shares), weights=list(shares.values()), k=n)
    images = np.empty((n, size, size, 3), np.uint8)
    captions = [""] * n
    singles = [i for i, kind in enumerate(kinds) if kind == "single"]
    rows = [int(row) for row in pictures.rows(split)]
    if not rows:
        raise RebusError(f"These pictures have none of split {split!r}. Build the whole set, or name another split.")
    chosen = rng.choices(rows, cum_weights=list(accumulate(pictures.weight[row] for row in rows)), k=len(singles))
    for start in range(0, len(singles), _CHUNK):
        where = singles[start : start + _CHUNK]
        images[where], words = _singles(pictures, chosen[start : start + _CHUNK], rng, size)
        for i, caption in zip(where, words, strict=True):
            captions[i] = caption
    others = _Others(pictures, split)
    for i, kind in enumerate(kinds):
        if kind != "single":
            image, captions[i] = others.draw(kind, rng, size)
            images[i] = np.asarray(image)
    return images, captions, kinds


def _singles(pictures: Pictures, rows: list[int], rng: Random, size: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Single pictures and their captions."""
    rgba_N = pictures.rgba_N[rows] if size == 64 else np.stack([pictures.rgba_128(row) for row in rows])
    behind_N = np.full((len(rows), size, size, 3), 255, np.uint8)
    captions = []
    for i, row in enumerate(rows):
        if rng.random() < 0.4:
            rgba_N[i] = _moved(rgba_N[i], rng)
        backdrop = random_backdrop(rng, white=0.65, plain=0.2)
        caption = named(pictures, row)
        if rng.random() < 0.5:
            caption += rng.choice((", drawn in {} style", ", {} style", " in {} style")).format(
                style_name(pictures, row)
            )
        if backdrop.pattern != "plain" or backdrop.first != "white":
            behind_N[i] = draw_backdrop(backdrop, size)
            if rng.random() < 0.7:
                caption += f", on {backdrop.words}"
        captions.append(caption)
    return over(rgba_N, behind_N), captions


def _moved(rgba_hw: NDArray[np.uint8], rng: Random) -> NDArray[np.uint8]:
    """The picture a little smaller, somewhere in the frame."""
    size = rgba_hw.shape[0]
    side = round(size * rng.uniform(0.65, 0.97))
    smaller = PIL.Image.fromarray(rgba_hw).resize((side, side), PIL.Image.Resampling.BILINEAR)
    left, top = rng.randint(0, size - side), rng.randint(0, size - side)
    moved = np.zeros_like(rgba_hw)
    moved[top : top + side, left : left + side] = np.asarray(smaller)
    return moved


class _Others:
    """Draws the images of a bank that are not single pictures, on a 128 px canvas."""

    def __init__(self, pictures: Pictures, split: str) -> None:
        self.pictures, self.things = pictures, Things(pictures, split)
        foreign = set(foreign_names(pictures, split))
        # a name of another split is neither written nor drawn, in whatever kind of image
        self.vocabulary = vocabulary(pictures, split)
        self.shapes = [(c, s) for c in _SHAPE_COLOURS for s in _SHAPES if f"{c} {s}" not in foreign]

    def draw(self, kind: str, rng: Random, size: int) -> tuple[PIL.Image.Image, str]:
        match kind:
            case "scene":
                scene = random_scene(self.things, rng)
                image, caption = render(self.pictures, scene), describe(self.pictures, scene, rng)
            case "crop":
                image, caption = self._crop(rng, size)
            case "words":
                image, caption = self._words(rng)
            case _:
                image, caption = self._shape(rng)
        if image.width != size:
            whole = image.width == 2 * size
            image = image.resize((size, size), PIL.Image.Resampling.BOX if whole else PIL.Image.Resampling.BILINEAR)
        return image, caption

    def _crop(self, rng: Random, size: int) -> tuple[PIL.Image.Image, str]:
        """Part of a scene around one of its pictures; the caption names what is seen of the others too."""
        scene = random_scene(self.things, rng)
        centre = rng.choice(scene.placed)
        side = rng.randint(min(size, 96), 100)
        left = min(max(centre.x - side // 2 + rng.randint(-24, 24), 0), SIDE - side)
        top = min(max(centre.y - side // 2 + rng.randint(-24, 24), 0), SIDE - side)
        seen: list[str] = []
        for placed in scene.placed:
            wide = min(placed.x + placed.side / 2, left + side) - max(placed.x - placed.side / 2, left)
            high = min(placed.y + placed.side / 2, top + side) - max(placed.y - placed.side / 2, top)
            if min(wide, high) > 0 and wide * high > 0.25 * placed.side**2:
                seen.append(article(self.pictures.label[placed.row]))
        names = list(dict.fromkeys(seen))
        caption = "part of a picture: " + " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return render(self.pictures, scene).crop((left, top, left + side, top + side)), caption

    def _words(self, rng: Random) -> tuple[PIL.Image.Image, str]:
        made = letter(self.vocabulary, rng)
        one = made.lines[0].isdigit() and len(made.lines) == 1
        what = f"the number {made.lines[0]}" if one else f'the text "{" ".join(made.lines)}"'
        return made.image, f"{what} in {made.ink} on {article(made.paper)} background"

    def _shape(self, rng: Random) -> tuple[PIL.Image.Image, str]:
        backdrop = random_backdrop(rng, white=0.5, plain=0.3)
        image = PIL.Image.fromarray(draw_backdrop(backdrop, 2 * SIDE))
        draw = PIL.ImageDraw.Draw(image)
        count = rng.choice((1, 1, 2))
        spots = (
            [(SIDE + rng.randint(-40, 40), SIDE + rng.randint(-40, 40))] if count == 1 else [(70, SIDE), (186, SIDE)]
        )
        names = []
        for x, y in spots:
            colour, shape = rng.choice(self.shapes)
            radius = rng.randint(40, 84) if count == 1 else rng.randint(34, 52)
            _draw_shape(draw, shape, x, y, radius, _SHAPE_COLOURS[colour])
            names.append(f"{article(colour)} {shape}")
        caption = " and ".join(names)
        if backdrop.pattern != "plain" or backdrop.first != "white":
            caption += f", on {backdrop.words}"
        return image.reduce(2), caption


def _draw_shape(
    draw: PIL.ImageDraw.ImageDraw, shape: str, x: int, y: int, radius: int, colour: tuple[int, int, int]
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    match shape:
        case "circle":
            draw.ellipse(box, colour)
        case "ring":
            draw.ellipse(box, None, colour, width=max(6, radius // 4))
        case "square":
            draw.rectangle(box, colour)
        case "rectangle":
            draw.rectangle((x - radius, y - radius // 2, x + radius, y + radius // 2), colour)
        case "cross":
            arm = radius // 3
            draw.rectangle((x - radius, y - arm, x + radius, y + arm), colour)
            draw.rectangle((x - arm, y - radius, x + arm, y + radius), colour)
        case "star":
            angles = np.arange(10) * np.pi / 5 - np.pi / 2
            reach = np.where(np.arange(10) % 2, 0.42, 1.0) * radius
            draw.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t, r in zip(angles, reach, strict=True)], colour)
        case _:
            corners = 3 if shape == "triangle" else 4
            draw.regular_polygon((x, y, radius), corners, 45 if shape == "diamond" else 0, colour)
