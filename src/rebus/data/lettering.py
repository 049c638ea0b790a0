"""Words that are written in a picture: in some size and colour of a font, on some colour of paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from rebus.data.backdrops import COLOURS, SIDE
from rebus.data.pictures import Pictures
from rebus.data.selection import foreign_names

Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont


@dataclass(frozen=True, eq=False)
class Lettering:
    """A picture of words."""

    image: PIL.Image.Image
    """128 x 128 pixels, RGB."""
    lines: tuple[str, ...]
    """What it says."""
    paper: str
    """Name of the colour behind the words."""
    ink: str
    """Name of theirs."""


@lru_cache(maxsize=32)
def font(size: int) -> Font:
    """Pillow's own font in a size of `size` pixels."""
    return PIL.ImageFont.load_default(size)


def vocabulary(pictures: Pictures, split: str) -> list[str]:
    """Short words out of the names of a split's pictures, none of which names something of another split."""
    foreign = set(foreign_names(pictures, split))
    words = {word for row in pictures.rows(split) for word in pictures.label[row].split()}
    return sorted({word for word in words if word.isalpha() and 2 <= len(word) <= 9} - foreign)


def letter(words: list[str], rng: Random) -> Lettering:
    """One or two words, or a number, in colours that can be told apart."""
    lines = [str(rng.randint(0, 999)) if rng.random() < 0.15 else rng.choice(words)]
    if rng.random() < 0.3:
        lines.append(rng.choice(words))
    if rng.random() < 0.3:
        lines = [line.upper() for line in lines]
    paper, ink = rng.sample(list(COLOURS), 2)
    while sum(abs(a - b) for a, b in zip(COLOURS[paper], COLOURS[ink], strict=True)) < 250:
        paper, ink = rng.sample(list(COLOURS), 2)
    image = PIL.Image.new("RGB", (SIDE, SIDE), COLOURS[paper])
    draw = PIL.ImageDraw.Draw(image)
    text = "\n".join(lines)
    points = min(52, round(200 / max(map(len, lines)))) if rng.random() < 0.7 else rng.choice((16, 20, 24))
    width = max(draw.textlength(line, font=font(points)) for line in lines)
    if width > SIDE - 8:
        points = max(12, int(points * (SIDE - 8) / width))
    centre = (SIDE // 2 + rng.randint(-3, 3), SIDE // 2 + rng.randint(-20, 20))
    draw.text(centre, text, COLOURS[ink], font=font(points), anchor="mm", align="center")
    return Lettering(image, tuple(lines), paper, ink)
