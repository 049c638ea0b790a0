"""Any resolution: which grid of square tiles an image is stretched to, its views, and where they lie (section 3.1).

The published code chooses the grid by two rules and takes the smaller of their choices; the paper's own formula is
another (the smallest grid that holds the image).

Dimension key: W views of one image
"""

from __future__ import annotations

from collections.abc import Sequence

import PIL.Image
import torch
from torch import Tensor

from rebus.errors import RebusError

Grid = tuple[int, int]
"""Columns and rows of an image's tiles."""


def grids(names: str) -> tuple[Grid, ...]:
    """`"1x1 1x2"` → grids, columns before rows. The order counts: of equally good ones the first is taken.

    Raises RebusError for a name that is none."""
    found = []
    for name in names.split():
        columns, _, rows = name.partition("x")
        if not (columns.isdecimal() and rows.isdecimal() and int(columns) * int(rows)):
            raise RebusError(f"A grid is written like 2x3, columns before rows, but this one is {name!r}. Write it so.")
        found.append((int(columns), int(rows)))
    return tuple(found)


COMPREHENSION = grids("1x1 1x2 1x3 2x1 3x1 1x4 4x1 2x2")
"""Grids of chat and questions."""
EDIT = grids("1x1")
"""Grids of editing and of pictures to be drawn: a tile and the thumbnail, which look alike."""
CAPTION = grids("1x1 1x2 1x3 1x4 1x5 2x1 3x1 4x1 5x1 2x2 2x3 3x2")
"""Grids of captions in pre-training."""
OCR = grids("1x1 1x2 1x3 2x1 3x1 2x2")
"""Grids of text to be read in pre-training."""
DEMO = grids("1x1 1x2 1x3 1x4 1x5 1x6 1x10 2x1 3x1 4x1 5x1 6x1 10x1 2x2 2x3 3x2 2x4 4x2")
"""Grids of the public demo."""


def fitting_area(size: tuple[int, int], choices: Sequence[Grid], side: int) -> Grid:
    """The grid that keeps most of an image's pixels when it is fitted in without stretching; of equal ones that which
    wastes least."""
    width, height = size

    def kept(grid: Grid) -> tuple[int, int]:
        across, down = grid[0] * side, grid[1] * side
        scale = min(across / width, down / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - across * down

    return max(choices, key=kept)  # of equal ones the first


def fitting_shape(size: tuple[int, int], choices: Sequence[Grid], side: int) -> Grid:
    """The grid whose ratio of sides is nearest to the image's; of equal ones that whose area is nearest."""
    width, height = size

    def off(grid: Grid) -> tuple[float, float]:
        across, down = grid[0] * side, grid[1] * side
        return _ratio(down / across, height / width), _ratio(across * down, width * height)

    return min(choices, key=off)


def _ratio(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def choose_grid(size: tuple[int, int], choices: Sequence[Grid], side: int) -> Grid:
    """The grid for an image of `size` (width, height) in tiles of `side` pixels: the smaller of what the two rules
    choose, `fitting_area`'s where they are equally large.

    Raises RebusError for an image without pixels or an empty list of grids.
    """
    if min(size) < 1 or not choices or side < 1:
        raise RebusError(
            "A grid of views needs an image of at least one pixel and grids to choose from, but the image is "
            f"{size[0]} x {size[1]} and there are {len(choices)} grids. Check the image and the setting `grids`."
        )
    area, shape = fitting_area(size, choices, side), fitting_shape(size, choices, side)
    return shape if area[0] * area[1] > shape[0] * shape[1] else area


def boxes(grid: Grid, side: int) -> list[tuple[int, int, int, int]]:
    """The tiles of the stretched image, row by row: left, top, right, bottom in pixels."""
    return [
        (column * side, row * side, (column + 1) * side, (row + 1) * side)
        for row in range(grid[1])
        for column in range(grid[0])
    ]


def positions(grid: Grid | None) -> Tensor:
    """Centres of an image's views in fractions of its sides, x before y, W x 2: the tiles row by row, then the whole."""
    columns, rows = grid or (0, 0)
    tiles = [((column + 0.5) / columns, (row + 0.5) / rows) for row in range(rows) for column in range(columns)]
    return torch.tensor([*tiles, (0.5, 0.5)])


def cut(picture: PIL.Image.Image, grid: Grid | None, side: int) -> list[PIL.Image.Image]:
    """The views: tiles of the picture stretched to the grid, row by row, then the whole picture stretched to a square.
    Without a grid the whole alone."""
    whole = picture.resize((side, side), PIL.Image.Resampling.BICUBIC)
    if grid is None:
        return [whole]
    stretched = picture.resize((grid[0] * side, grid[1] * side), PIL.Image.Resampling.BICUBIC)
    return [*(stretched.crop(box) for box in boxes(grid, side)), whole]
