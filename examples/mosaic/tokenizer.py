"""How Mosaic sees: the mean colour of each cell of a grid, as one of a palette (section 2).

Dimension key: I images · N cells · K colours of the palette · h w cells of a side
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import reduce
from torch import Tensor, nn

from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import prepare
from rebus.visual import Codes, Purpose

CELL = 16
"""Pixels of a side of a cell, to which pictures are stretched."""


def palette(levels: int) -> Tensor:
    """colours_K3: every mixture of `levels` steps of red, green and blue, each 0..1."""
    steps = torch.linspace(0, 1, levels)
    return torch.cartesian_prod(steps, steps, steps)


class MosaicTokenizer(nn.Module):
    """Images ↔ codes. `source` names the tokenizer and its weights; codes carry it."""

    def __init__(self, grid: int, levels: int, source: str) -> None:
        super().__init__()
        self.grid = grid
        self.source = source
        self.register_buffer("colours_K3", palette(levels))

    def ids(self, pixels_I3hw: Tensor) -> Tensor:
        """Pixels 0..1, whose sides are multiples of the grid's → ids_IN, row by row."""
        x_IN3 = reduce(pixels_I3hw, "I c (h a) (w b) -> I (h w) c", "mean", h=self.grid, w=self.grid)
        return torch.cdist(x_IN3, self.colours_K3.to(x_IN3)).argmin(-1)

    def encode(
        self, images: Sequence[Image], purposes: set[Purpose], *, generators: Sequence[torch.Generator] | None = None
    ) -> list[Image]:
        """The images with codes, the same for reading and for writing; those that have such are left as they are.

        Raises RebusError for an image that has neither codes of this tokenizer nor pixels.
        """
        return [self._encoded(image) for image in images]

    def _encoded(self, image: Image) -> Image:
        for codes in (image.understood, image.generated):
            if isinstance(codes, Codes) and codes.source == self.source:
                return image.with_tokens(understood=codes, generated=codes)
        if image.pixels is None:
            raise RebusError(f"An image without pixels has no codes of {self.source!r}. Give it pixels.")
        codes = Codes(self.ids(prepare([image.pixels], CELL * self.grid))[0], self.source)
        return image.with_tokens(understood=codes, generated=codes)
