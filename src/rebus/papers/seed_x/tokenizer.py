"""SEED-X's tokenizer: an image becomes vectors, those of its views to be read and those of the whole to be drawn
(sections 3.1 and 3.2).

    picture ─ views ─▶ pixels_V3hw ─ vision ─▶ x_WNC, position_W2         Features: what the language model reads
    picture stretched to a square ─ vision, pool_rows ─▶ x_1SC            Features: what it learns to say

Dimension key: I images · V views of all images · W views of one image · N vectors of a view · S slots · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import CLIP_MEAN, CLIP_STD, RGB, prepare, to_rgb
from rebus.papers.seed_x.views import COMPREHENSION, Grid, choose_grid, cut, positions
from rebus.papers.seed_x.vision import (
    PatchEncoder,
    PatchVisionConfig,
    VisionConfig,
    VisionEncoder,
    pool_rows,
    vision_encoder,
)
from rebus.visual import Features, Purpose

AT_ONCE = 16
"""Views that `encode` puts through the vision encoder together."""


@dataclass(frozen=True)
class SeedXTokenizerConfig:
    """Sizes and choices of SEED-X's tokenizer; the defaults are the published ones of chat and questions."""

    vision: VisionConfig | PatchVisionConfig = field(default_factory=VisionConfig)
    """The vision encoder."""
    grids: tuple[Grid, ...] = COMPREHENSION
    """Grids that an image to be read may be cut into, as (columns, rows); none: it is read whole, as one view."""
    alone: Literal["twice", "once"] = "twice"
    """How an image is read whose grid is one tile: as the tile and the whole, which look alike (the published code), or
    as the whole alone, in half of the words."""
    pooled: int = 4
    """Neighbouring vectors of a row that are averaged into one, in an image to be drawn."""
    mean: RGB = CLIP_MEAN
    """Channel means of the pixels."""
    std: RGB = CLIP_STD
    """Channel deviations of the pixels."""

    @property
    def slots(self) -> int:
        """Vectors of an image to be drawn."""
        return self.vision.vectors // self.pooled


class SeedXTokenizer(nn.Module):
    """Images → features. `source` names the tokenizer and its weights; all features carry it.

    `vision` may be an encoder that is shared with others; by default one is built from the config. `grids` may be set
    anew at any time, since no weight depends on it.
    """

    def __init__(
        self,
        config: SeedXTokenizerConfig,
        *,
        source: str = "seed_x",
        vision: VisionEncoder | PatchEncoder | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if vision is not None and vision.config != config.vision:
            raise RebusError(
                "The vision encoder handed to SEED-X's tokenizer is not the one its config describes: "
                f"{vision.config} against {config.vision}. Pass the encoder's own config as `vision`."
            )
        row = round(config.vision.vectors**0.5)
        if config.pooled < 1 or row % config.pooled:
            raise RebusError(
                f"Vectors of one row are averaged, but {config.pooled} of them do not divide a row of {row}. "
                "Set `pooled` to a divisor of the vision encoder's rows."
            )
        self.config = config
        self.source = source
        self.vision = vision or vision_encoder(config.vision, generator)
        self.grids = config.grids

    # -------------------------------------------------------------------------------------- image → tokens

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image],
        purposes: set[Purpose],
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[Image]:
        """The images with features of their views as `understood` and pooled features of the whole as `generated`.
        Images that have what is asked are returned as they are. Nothing is random: `generators` are not used.

        Raises RebusError for an image that has neither what is asked nor pixels, or whose picture is empty.
        """
        done: list[Image] = []
        tasks: list[tuple[int, Purpose, Grid | None]] = []
        for number, image in enumerate(images):
            asked = {"understanding": image.understood, "generation": image.generated}
            lacking = [purpose for purpose in sorted(purposes) if asked[purpose] is None]
            if lacking and image.pixels is None:
                raise RebusError(
                    f"Image {number + 1} of {len(images)} has no pixels and lacks the features for "
                    f"{' and '.join(lacking)}, so it cannot be encoded: SEED-X reads an image from its pixels, also one "
                    "that it has drawn. Give it pixels, or load the image decoder that draws it."
                )
            if lacking and image.pixels is not None and min(image.pixels.size) < 1:
                raise RebusError(
                    f"Image {number + 1} of {len(images)} is {image.pixels.width} x {image.pixels.height} pixels, so there "
                    "is nothing to see. Give a picture of at least one pixel."
                )
            grids = {purpose: self.grid(image) if purpose == "understanding" else None for purpose in lacking}
            tasks += [(number, purpose, grid) for purpose, grid in grids.items()]
            done.append(image)
        features = self._features([(images[number], grid) for number, _, grid in tasks])
        for (number, purpose, grid), x_WNC in zip(tasks, features, strict=True):
            if purpose == "understanding":
                done[number] = done[number].with_tokens(understood=Features(x_WNC, self.source, positions(grid)))
            else:
                pooled = Features(pool_rows(x_WNC, self.config.pooled), self.source)
                done[number] = done[number].with_tokens(generated=pooled)
        return done

    def grid(self, image: Image) -> Grid | None:
        """The grid that an image with pixels is read on; None where it is read whole."""
        assert image.pixels is not None
        if not self.grids:
            return None
        chosen = choose_grid(image.pixels.size, self.grids, self.config.vision.trunk.image_size)
        return None if chosen == (1, 1) and self.config.alone == "once" else chosen

    def with_grids(self, grids: tuple[Grid, ...]) -> SeedXTokenizer:
        """The same tokenizer, whose vision encoder it shares, with other grids; none: images are read whole."""
        return SeedXTokenizer(replace(self.config, grids=grids), source=self.source, vision=self.vision)

    def _features(self, cuts: Sequence[tuple[Image, Grid | None]]) -> list[Tensor]:
        """x_WNC of each image cut by its grid, on the CPU; views of several images go through the encoder together."""
        side = self.config.vision.trunk.image_size
        views: list[PIL.Image.Image] = []
        counts: list[int] = []
        for image, grid in cuts:
            assert image.pixels is not None
            own = cut(to_rgb(image.pixels), grid, side)
            views += own
            counts.append(len(own))
        device = next(self.vision.parameters()).device
        was_training = self.training
        self.eval()
        try:
            parts = [
                self.vision(self.pixels(views[start : start + AT_ONCE]).to(device)).cpu()
                for start in range(0, len(views), AT_ONCE)
            ]
        finally:
            self.train(was_training)
        return list(torch.cat(parts).split(counts)) if parts else []

    def pixels(self, views: Sequence[PIL.Image.Image]) -> Tensor:
        """Pictures, stretched to squares → normalised pixels_V3hw on the CPU."""
        side = self.config.vision.trunk.image_size
        return prepare(views, side, resize="bicubic", mean=self.config.mean, std=self.config.std)

    @torch.no_grad()
    def blank(self) -> Features:
        """The features, pooled, of a picture of the mean colour: pixels that are zero once normalised. What SEED-X's
        image decoders are guided away from."""
        side, device = self.config.vision.trunk.image_size, next(self.vision.parameters()).device
        x_1NC = self.vision(torch.zeros(1, 3, side, side, device=device)).cpu()
        return Features(pool_rows(x_1NC, self.config.pooled), self.source)
