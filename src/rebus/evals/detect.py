"""Which things are where in a drawn scene, without a trained detector: what stands out from the plain background is cut
into connected regions, and each region is named by the most similar real picture.

Dimension key: R regions · h w height and width
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rebus.data.backdrops import COLOURS, SIDE

STANDS_OUT = 30
"""Difference of a pixel from the background, in its most different channel of 0..255, from which on it is a thing."""
SMALLEST = 0.012
"""Share of the picture below which a region is a speck; the smallest thing of a scene covers about 0.03."""
REACH = 1
"""Parts of a thing that lie up to twice this many pixels apart (of 128) are one region."""


@dataclass(frozen=True, eq=False)
class Region:
    """One thing that stands out."""

    x: float
    """centre, as a share of the width"""
    y: float
    """centre, as a share of the height"""
    cut: PIL.Image.Image
    """the thing on white, in a square"""


def background(picture: PIL.Image.Image) -> tuple[int, int, int]:
    """The colour of the picture's edge: the median of its outermost pixels in each channel."""
    pixels_hw3 = _at_scene_size(picture)
    edge = np.concatenate([pixels_hw3[:3], pixels_hw3[-3:], pixels_hw3[:, :3].swapaxes(0, 1)[:, :SIDE]])
    red, green, blue = np.median(edge.reshape(-1, 3), axis=0)
    return int(red), int(green), int(blue)


def colour_name(colour: tuple[int, int, int]) -> str:
    """Which of the data's colours is nearest."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], colour, strict=True)))


def regions(picture: PIL.Image.Image) -> list[Region]:
    """What stands out from the background, largest first."""
    pixels_hw3 = _at_scene_size(picture)
    behind = np.array(background(picture))
    stands_out_hw = np.abs(pixels_hw3.astype(int) - behind).max(-1) > STANDS_OUT
    labels_hw = _connected(stands_out_hw)
    found = []
    for label in np.unique(labels_hw[labels_hw > 0]):
        inside_hw = (labels_hw == label) & stands_out_hw
        if inside_hw.mean() >= SMALLEST:
            found.append((inside_hw.sum(), _region(pixels_hw3, inside_hw)))
    return [region for _, region in sorted(found, key=lambda pair: -pair[0])]


def _at_scene_size(picture: PIL.Image.Image) -> NDArray[np.uint8]:
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC)
    return np.asarray(picture.convert("RGB"))


def _connected(mask_hw: NDArray[np.bool_]) -> NDArray[np.int64]:
    """A number above 0 for each connected part of the mask, widened by REACH pixels; 0 elsewhere."""
    wide = F.max_pool2d(torch.from_numpy(mask_hw)[None].float(), 2 * REACH + 1, 1, REACH)[0].bool().numpy()
    parts = [0]  # parts[i] is a part that part i belongs to; itself, or an earlier one
    labels_hw = np.zeros(mask_hw.shape, np.int64)

    def earliest(label: int) -> int:
        while parts[label] != label:
            label = parts[label]
        return label

    for y, line in enumerate(wide):
        ends = np.flatnonzero(np.diff(np.concatenate(([0], line, [0]))))
        for left, right in zip(ends[::2], ends[1::2], strict=True):  # one run of the row, and what touches it above
            above = labels_hw[y - 1, max(left - 1, 0) : right + 1] if y else np.zeros(0, np.int64)
            touching = sorted({earliest(label) for label in np.unique(above) if label})
            if not touching:
                touching = [len(parts)]
                parts.append(len(parts))
            for label in touching[1:]:
                parts[label] = touching[0]
            labels_hw[y, left:right] = touching[0]
    return np.array([earliest(label) for label in range(len(parts))])[labels_hw]


def _region(pixels_hw3: NDArray[np.uint8], inside_hw: NDArray[np.bool_]) -> Region:
    ys, xs = np.nonzero(inside_hw)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = int(max(bottom - top, right - left) * 1.08) + 2
    square = np.full((side, side, 3), 255, np.uint8)
    y, x = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    # what lies between the parts of the thing belongs to it, unless it is the background of a colour
    cut = np.where(inside_hw[..., None], pixels_hw3, 255)[top:bottom, left:right]
    square[y : y + bottom - top, x : x + right - left] = cut
    centre_x, centre_y = (left + right) / 2 / SIDE, (top + bottom) / 2 / SIDE
    return Region(float(centre_x), float(centre_y), PIL.Image.fromarray(square))
