"""What an image's tokens say: how many, how many bits, which patches and views, what becomes of them when they are changed.

Dimension key: N codes · W views · C width · h w height and width in pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch

from rebus.document import Box, Image
from rebus.errors import RebusError
from rebus.images import to_rgb
from rebus.visual import Codes, Features, ImageSampling, Progress, VisualTokens

LINE = (255, 64, 64)
"""The colour of boxes and of the lines between views."""


# ------------------------------------------------------------------------------------------------ tokens


@dataclass(frozen=True)
class Facts:
    """The tokens that an image is drawn from, counted."""

    count: int
    """tokens"""
    bits: float
    """information that they can hold"""
    says: str
    """both in words"""


def encoded(system: Any, pixels: PIL.Image.Image) -> Image:
    """The picture with the tokens that it would be drawn from. The same picture always has the same ones."""
    (image,) = system.tokenizer.encode([Image(pixels)], {"generation"}, generators=[torch.Generator().manual_seed(0)])
    return image


def facts(tokens: VisualTokens, system: Any) -> Facts:
    """How many tokens an image has and how many bits they can hold. Codes are counted by how many there are to choose from
    at their place, vectors by the numbers that they are held in. Raises RebusError for patches, which nothing is drawn
    from."""
    match tokens:
        case Codes():
            places = range(len(tokens.ids_N))
            choices = [len(codes_at(system, place)) for place in places]
            bits = sum(math.log2(choice) for choice in choices)
            each = f"of {choices[0]:,}" if len(set(choices)) == 1 else f"of {min(choices):,} to {max(choices):,}"
            return Facts(len(choices), bits, f"{len(choices)} codes, each one {each}: {bits:,.0f} bits")
        case Features():
            w, n, c = tokens.x_WNC.shape
            size = tokens.x_WNC.element_size() * 8
            bits = w * n * c * size
            return Facts(w * n, bits, f"{w * n} vectors of {c:,} numbers with {size} bits: {bits:,.0f} bits")
    raise RebusError("Patches are read and not drawn from, so they are not counted. Encode the image for generation.")


def codes_at(system: Any, place: int) -> range:
    """The codes that may stand at a place of an image of this system."""
    grammar = system.grammar
    return grammar.codes_at(place) if hasattr(grammar, "codes_at") else range(grammar.config.codes)


def changed(codes: Codes, place: int, code: int, system: Any) -> Codes:
    """The codes with another one at a place. Raises RebusError for a place that is not there, or a code that may not stand
    there."""
    if not 0 <= place < len(codes.ids_N):
        raise RebusError(
            f"The image has {len(codes.ids_N)} codes, but number {place + 1} was to be changed. Choose one."
        )
    allowed = codes_at(system, place)
    if code not in allowed:
        raise RebusError(
            f"Code {place + 1} of this model's images is {allowed.start} to {allowed.stop - 1}, but {code} was asked for. "
            "Choose one of these."
        )
    ids_N = codes.ids_N.clone()
    ids_N[place] = code
    return Codes(ids_N, codes.source)


def blended(first: Codes, second: Codes, share: float, system: Any) -> Codes:
    """Codes between those of two images: their codebook entries are mixed, `share` of the second, and each becomes the
    nearest entry that may stand at its place. 0 gives the first image, 1 the second.

    Raises RebusError for images of different numbers of codes."""
    if first.ids_N.shape != second.ids_N.shape:
        raise RebusError(
            f"Only images of as many codes can be mixed, but these have {len(first.ids_N)} and {len(second.ids_N)}. "
            "Take a model whose images all have the same number, such as seed:mini."
        )
    quantizer = system.tokenizer.quantizer
    device = quantizer.codebook_KC.device
    one_NC, other_NC = (quantizer.decode(codes.ids_N.to(device)) for codes in (first, second))
    return Codes(quantizer.encode(one_NC + share * (other_NC - one_NC)).cpu(), first.source)


def redrawn(system: Any, tokens: Sequence[VisualTokens], *, seed: int = 0) -> Iterator[Progress | PIL.Image.Image]:
    """The images that tokens say, side by side and all from the same noise, so that they differ by their tokens alone."""
    with torch.inference_mode():
        yield from system.detokenizer.decode(
            list(tokens),
            sources=[None] * len(tokens),
            negatives=[None] * len(tokens),
            generators=[torch.Generator().manual_seed(seed) for _ in tokens],
            sampling=ImageSampling(),
        )


def likeness(picture: PIL.Image.Image, drawn: PIL.Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of what was drawn, against the picture at its size."""
    target = to_rgb(picture).resize(drawn.size, PIL.Image.Resampling.BICUBIC)
    off_hw3 = (np.asarray(target, np.float64) - np.asarray(to_rgb(drawn), np.float64)) / 255
    error = float((off_hw3**2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


# ------------------------------------------------------------------------------------------------ pictures of it


def views_over(picture: PIL.Image.Image, grid: tuple[int, int] | None) -> PIL.Image.Image:
    """The picture with lines where a grid of (columns, rows) cuts it into views."""
    marked = to_rgb(picture).copy()
    draw = PIL.ImageDraw.Draw(marked)
    columns, rows = grid or (1, 1)
    width = max(1, round(max(marked.size) / 160))
    for column in range(1, columns):
        x = marked.width * column / columns
        draw.line([(x, 0), (x, marked.height)], LINE, width)
    for row in range(1, rows):
        y = marked.height * row / rows
        draw.line([(0, y), (marked.width, y)], LINE, width)
    return marked


def boxes_over(picture: PIL.Image.Image, boxes: Sequence[Box], *, smallest: int = 384) -> PIL.Image.Image:
    """The picture with boxes around regions of it, enlarged in whole steps where lines would hide what is in them."""
    times = max(1, -(-smallest // max(picture.size)))
    marked = to_rgb(picture).resize((picture.width * times, picture.height * times), PIL.Image.Resampling.NEAREST)
    draw = PIL.ImageDraw.Draw(marked)
    line = max(2, round(max(marked.size) / 160))
    for box in boxes:
        left, right = (np.clip((box.cx - box.w / 2, box.cx + box.w / 2), 0, 1) * (marked.width - 1)).round().tolist()
        top, bottom = (np.clip((box.cy - box.h / 2, box.cy + box.h / 2), 0, 1) * (marked.height - 1)).round().tolist()
        draw.rectangle([left, top, right, bottom], outline=LINE, width=line)
    return marked
