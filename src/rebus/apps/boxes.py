"""What a model pointed at, drawn into the picture."""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw

from rebus.document import Box
from rebus.images import to_rgb

COLOURS = ((230, 40, 60), (30, 120, 230), (20, 160, 80), (240, 150, 20))
"""One for each box, by turns."""


def with_boxes(image: PIL.Image.Image, boxes: Sequence[Box]) -> PIL.Image.Image:
    """A copy of the picture with a frame around each box, in colours of their own between two white lines; boxes are cut at the picture's
    edge."""
    drawn = to_rgb(image).copy()
    draw = PIL.ImageDraw.Draw(drawn)
    pen = max(1, min(drawn.size) // 100)
    for number, box in enumerate(boxes):
        left, right = ((box.cx + sign * box.w / 2) * drawn.width for sign in (-1, 1))
        top, bottom = ((box.cy + sign * box.h / 2) * drawn.height for sign in (-1, 1))
        left, top = max(0, round(left)), max(0, round(top))
        right, bottom = min(drawn.width - 1, round(right)), min(drawn.height - 1, round(bottom))
        frame = (left, top, max(left, right), max(top, bottom))
        if drawn.width > 8 * pen and drawn.height > 8 * pen:
            around = tuple(at + by * pen for at, by in zip(frame, (-1, -1, 1, 1), strict=True))
            draw.rectangle(around, None, (255, 255, 255), width=3 * pen)
        draw.rectangle(frame, None, COLOURS[number % len(COLOURS)], width=pen)
    return drawn
