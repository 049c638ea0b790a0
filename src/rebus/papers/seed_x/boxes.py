"""Boxes as words: a mark, four places of a scale of 224, and a closing mark (sections 3.2 and 4.2).

The four are centre x, centre y, width and height, each in 1/224 of the image's width or height. The scale ends at 223/224:
there is no word for a whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rebus.document import Box, Part
from rebus.errors import RebusError
from rebus.papers.seed_x.spelling import SeedXGrammarConfig

PER_BOX = 4
"""Location words of a box."""

_MARKED = re.compile(r"(<box_start>.*?<box_end>)", re.DOTALL)


def box_words(box: Box, config: SeedXGrammarConfig) -> list[int]:
    """The words of a box, marks included: each number goes to the nearest place of the scale."""
    places = [min(config.locations - 1, round(v * config.locations)) for v in (box.cx, box.cy, box.w, box.h)]
    return [config.begin_box, *(config.first_location + place for place in places), config.end_box]


def read_box(ids: Sequence[int], config: SeedXGrammarConfig) -> Box:
    """The box of words from mark to mark. Raises RebusError unless exactly four locations stand between the two."""
    places = [word - config.first_location for word in ids[1:-1]]
    marked = len(ids) > 1 and ids[0] == config.begin_box and ids[-1] == config.end_box
    return _box(places if marked else [], config.locations, f"the words {list(ids)}")


def split_boxes(text: str, locations: int) -> tuple[Part, ...]:
    """Text in which boxes are written out, as in SEED-X's chat data (`<box_start><loc-112>…<box_end>`) → text and boxes.

    Raises RebusError for a box that has not exactly four locations, or one that is off the scale."""
    parts: list[Part] = []
    for piece in _MARKED.split(text):
        if piece.startswith("<box_start>") and piece.endswith("<box_end>"):
            inside = piece.removeprefix("<box_start>").removesuffix("<box_end>")
            names = re.findall(r"<loc-(\d+)>", inside)
            clean = "".join(f"<loc-{name}>" for name in names) == re.sub(r"\s", "", inside)
            parts.append(_box([int(name) for name in names] if clean else [], locations, repr(piece)))
        elif piece:
            parts.append(piece)
    return tuple(parts)


def _box(places: list[int], locations: int, where: str) -> Box:
    if len(places) != PER_BOX or not all(0 <= place < locations for place in places):
        raise RebusError(
            f"A box is four locations from 0 to {locations - 1} between two marks, but {where} are not so. "
            "Write centre x, centre y, width and height, or generate with this grammar, which closes every box."
        )
    return Box(*(place / locations for place in places))
