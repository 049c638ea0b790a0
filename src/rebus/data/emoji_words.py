"""Documents about written words: reading what a picture says, and slides, whose layout is told in boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import PIL.Image
import PIL.ImageDraw

from rebus.data import phrases as p
from rebus.data.backdrops import COLOURS, SIDE, Backdrop
from rebus.data.lettering import font, letter, vocabulary
from rebus.data.phrases import say
from rebus.data.scenes import Placed, Scene, exact_box, render
from rebus.data.selection import Selection
from rebus.data.wording import GROUPS, article
from rebus.document import Box, Document, Image, Part, assistant, user

_PAPER = ("white", "beige", "pale yellow", "light blue", "light green", "lavender", "light grey")
_TITLE = (18, 14)
"""Height of the middle of a title, and its size, of 128 pixels."""


@lru_cache(maxsize=4)
def _words(selection: Selection) -> list[str]:
    return vocabulary(selection.pictures, selection.split)


def read_words(selection: Selection, rng: Random, size: int) -> Document:
    """A picture of words, then the words: pre-training, with an instruction half of the time."""
    made = letter(_words(selection), rng)
    said = assistant(" ".join(made.lines))
    if rng.random() < 0.5:
        return Document((user(Image(made.image)), said))
    return Document((user(Image(made.image), say(p.ASK_READ, rng)), said))


@dataclass(frozen=True, eq=False)
class Slide:
    """A title above one to three pictures."""

    title: str
    """What is written."""
    names: tuple[str, ...]
    """What the pictures show, with articles."""
    image: PIL.Image.Image
    """128 x 128 pixels, RGB."""
    title_box: Box
    """Where the title is."""
    boxes: tuple[Box, ...]
    """Where each picture is."""

    @property
    def things(self) -> str:
        """`an apple, a pear and a cherry`."""
        return " and ".join(filter(None, (", ".join(self.names[:-1]), self.names[-1])))

    @property
    def layout(self) -> tuple[Part, ...]:
        """Every element and its box."""
        parts: list[Part] = [f"title {self.title} ", self.title_box]
        for name, box in zip(self.names, self.boxes, strict=True):
            parts += [f"; picture of {name} ", box]
        return tuple(parts)


def make_slide(selection: Selection, rng: Random) -> Slide:
    """A slide about one group of things."""
    rows = selection.things.pick(rng, rng.randint(1, 3))
    title = GROUPS[selection.pictures.group[rows[0]]].split(" ")[0].capitalize()
    side = {1: 84, 2: 54, 3: 38}[len(rows)]
    step = SIDE // len(rows)
    placed = tuple(Placed(row, step * at + step // 2, 80 + rng.randint(-4, 4), side) for at, row in enumerate(rows))
    scene = Scene("row", placed, Backdrop("plain", rng.choice(_PAPER)))
    image = render(selection.pictures, scene)
    draw = PIL.ImageDraw.Draw(image)
    y, points = _TITLE
    where = draw.textbbox((SIDE // 2, y), title, font=font(points), anchor="mm")
    draw.text((SIDE // 2, y), title, COLOURS["black"], font=font(points), anchor="mm")
    left, top, right, bottom = (min(max(v / SIDE, 0.0), 1.0) for v in where)
    return Slide(
        title,
        tuple(article(selection.pictures.label[row]) for row in rows),
        image,
        Box((left + right) / 2, (top + bottom) / 2, right - left, bottom - top),
        tuple(exact_box(selection.pictures, one) for one in placed),
    )


def slide(selection: Selection, rng: Random, size: int) -> Document:
    """A slide is wished for, and drawn."""
    made = make_slide(selection, rng)
    asked = say(p.ASK_SLIDE, rng, title=made.title, things=made.things)
    image = made.image if size == SIDE else made.image.resize((size, size))
    return Document((user(asked), assistant(Image(image))))


def slide_layout(selection: Selection, rng: Random, size: int) -> Document:
    """A slide is to be laid out: title and pictures, each with its box; half of the time one that is shown."""
    made = make_slide(selection, rng)
    if rng.random() < 0.5:
        return Document((user(Image(made.image), say(p.READ_SLIDE, rng)), assistant(*made.layout)))
    asked = say(p.ASK_SLIDE_LAYOUT, rng, title=made.title, things=made.things)
    return Document((user(asked), assistant(*made.layout)))


def facts(selection: Selection, rng: Random, size: int) -> Document:
    """Words without any picture: what belongs together."""
    row = selection.pick(rng)
    words = selection.keywords(row, rng)
    group = GROUPS[selection.pictures.group[row]]
    text = f"It belongs to {group}." + (f" Related words are {', '.join(words)}." if words else "")
    return Document((user(f"Say something about {selection.name(row)}. "), assistant(text)))
