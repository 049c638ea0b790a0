"""Picture sheets: samples of a task beside each other, to be looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import lru_cache

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from rebus.evals.figures import Sample

CELL = 112
"""Side in pixels of one picture on a sheet."""
_GAP, _LINE, _POINTS = 10, 13, 11
_RIGHT, _WRONG, _INK, _FAINT = (46, 140, 80), (190, 60, 50), (30, 30, 34), (120, 122, 128)


@lru_cache
def _font() -> PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont:
    return PIL.ImageFont.load_default(_POINTS)


def sheet(samples: Sequence[Sample], columns: int = 4) -> PIL.Image.Image | None:
    """One block a sample: its pictures in a row, what each is, what was asked and said, and a bar that is green where the
    score is at least one half. None where no sample has pictures."""
    shown = [sample for sample in samples if sample.pictures]
    if not shown:
        return None
    wide = max(len(sample.pictures) for sample in shown) * (CELL + _GAP) + _GAP
    columns = max(1, min(columns, len(shown), 1500 // wide))
    characters = max(16, (wide - 2 * _GAP) // 6)
    lines = [_lines(sample, characters) for sample in shown]
    high = CELL + (max(map(len, lines)) + 1) * _LINE + 3 * _GAP
    rows = -(-len(shown) // columns)
    page = PIL.Image.new("RGB", (columns * wide, rows * high), "white")
    draw = PIL.ImageDraw.Draw(page)
    for number, (sample, text) in enumerate(zip(shown, lines, strict=True)):
        left, top = number % columns * wide, number // columns * high
        colour = _RIGHT if sample.score >= 0.5 else _WRONG
        draw.rectangle((left + _GAP, top + 2, left + wide - _GAP, top + 4), colour)
        for place, (word, picture) in enumerate(sample.pictures):
            x, y = left + _GAP + place * (CELL + _GAP), top + _GAP
            page.paste(picture.convert("RGB").resize((CELL, CELL), PIL.Image.Resampling.BICUBIC), (x, y))
            draw.rectangle((x - 1, y - 1, x + CELL, y + CELL), None, (225, 226, 230))
            draw.text((x, y + CELL + 2), word, _FAINT, font=_font())
        for place, line in enumerate(text, 1):
            draw.text((left + _GAP, top + _GAP + CELL + 2 + place * _LINE), line, _INK, font=_font())
    return page


def _lines(sample: Sample, characters: int) -> list[str]:
    said = [f"asked: {sample.asked}", f"wanted: {sample.wanted}", f"came: {sample.said}"]
    return [line for text in said for line in textwrap.wrap(" ".join(text.split()), characters, max_lines=3)]
