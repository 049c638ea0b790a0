"""How Mosaic draws: a square of its colour for every code (section 4).

Dimension key: N cells · h w cells of a side
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import PIL.Image
import torch
from einops import rearrange
from examples.mosaic.tokenizer import MosaicTokenizer
from torch import nn

from rebus.errors import RebusError
from rebus.images import to_pil
from rebus.visual import Codes, ImageSampling, Progress, VisualTokens

SIDE = 64
"""Pixels of a side of a drawn image."""


class MosaicDetokenizer(nn.Module):
    """Codes → images; `codes` is the tokenizer, whose colours are painted."""

    settings: frozenset[str] = frozenset()
    """What it is told by `ImageSampling`: nothing, as it has neither steps nor guidance."""

    def __init__(self, codes: MosaicTokenizer) -> None:
        super().__init__()
        self.codes = codes

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """One step, then the images. Raises RebusError for anything but codes of this tokenizer."""
        for number, token in enumerate(tokens, 1):
            if not isinstance(token, Codes) or token.source != self.codes.source:
                raise RebusError(
                    f"Mosaic draws codes of {self.codes.source!r}, but image {number} has {type(token).__name__} of "
                    f"{token.source!r}. Tokenize it with this model."
                )
        yield Progress(1, 1)
        for token in tokens:
            assert isinstance(token, Codes)
            x_N3 = self.codes.colours_K3[token.ids_N.to(self.codes.colours_K3.device)]
            pixels_13hw = rearrange(x_N3, "(h w) c -> 1 c h w", h=self.codes.grid)
            yield to_pil(pixels_13hw)[0].resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)
