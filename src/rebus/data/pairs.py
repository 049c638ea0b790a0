"""Image-text pairs for training what sees: batches of pictures, cropped and flipped at random, with their captions.

Crops and flips are those of BLIP-2's published configs (flips, although captions may speak of left and right).

Dimension key: I images · h w sides in pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Protocol

import PIL.Image
import PIL.ImageOps
from torch import Tensor

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.lines import Unreadable
from rebus.data.loader import position_of
from rebus.data.mixture import shuffled
from rebus.data.sources import open_source
from rebus.errors import RebusError
from rebus.images import RGB, prepare
from rebus.nn.vit import ViTConfig

UNSAID = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


class Looks(Protocol):
    """What of a tokenizer's config says how it takes pictures in."""

    @property
    def vision(self) -> ViTConfig:
        """The vision encoder."""
        ...

    @property
    def mean(self) -> RGB:
        """Channel means of the pixels."""
        ...

    @property
    def std(self) -> RGB:
        """Channel deviations of the pixels."""
        ...


class PairBatch(NamedTuple):
    """Pictures with their captions."""

    pixels_I3hw: Tensor
    captions: list[str]


class PairBatches:
    """Batches of the pairs under `path`, without end, from `position` on: each epoch in an order of its own, pictures cut
    and flipped at random, both pure functions of the seed and the position. Pairs that cannot be read, or that `keep`
    refuses, are left out and counted. Raises RebusError when there are fewer pairs than a batch holds."""

    def __init__(
        self,
        path: Path,
        batch: int,
        config: Looks,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        keep: Keep = KEEP_ALL,
    ) -> None:
        self.documents = open_source(path, "caption", keep)
        self.batch, self.config, self.seed = batch, config, seed
        self.rank, self.world = rank, world
        self.position = self.skipped = 0
        if len(self.documents) < batch * world:
            raise RebusError(
                f"{path} holds {len(self.documents)} pairs, but a step takes {batch * world}. Name more data, or make the "
                "batch smaller."
            )

    def __iter__(self) -> Iterator[PairBatch]:
        in_vain = 0
        while True:
            found = self._make(self.position)
            self.position += 1
            in_vain = 0 if len(found.captions) > 1 else in_vain + 1
            if in_vain >= 100:
                raise RebusError(
                    f"{in_vain} batches in a row hold fewer than two pairs that can be read. Check the data."
                )
            if not in_vain:  # a batch of one has nothing to be told apart from
                yield found

    def state_dict(self) -> dict[str, Any]:
        """Position, and how many pairs were skipped."""
        return {"position": self.position, "skipped": self.skipped, "step": self.batch * self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.position, self.skipped = position_of(state, self.batch * self.world), state["skipped"]

    def _make(self, index: int) -> PairBatch:
        pictures, captions = [], []
        start = (index * self.world + self.rank) * self.batch
        for position in range(start, start + self.batch):
            epoch, place = divmod(position, len(self.documents))
            rng = Random(f"pairs {self.seed} {position}")
            try:
                document = self.documents[shuffled(place, len(self.documents), f"{self.seed} pairs {epoch}")]
            except Unreadable:
                self.skipped += 1
                continue
            pixels = document.images[0].pixels
            if pixels is None:
                self.skipped += 1
                continue
            pictures.append(random_view(pixels, rng, self.config.vision.image_size))
            captions.append(clean(" ".join(message.text for message in document.messages)))
        size, mean, std = self.config.vision.image_size, self.config.mean, self.config.std
        return PairBatch(prepare(pictures, size, resize="bicubic", mean=mean, std=std), captions)


def random_view(image: PIL.Image.Image, rng: Random, size: int, *, least: float = 0.5) -> PIL.Image.Image:
    """A random part of a picture, at least the share `least` of its area and of an aspect within 3:4 and 4:3, as a square
    of `size` pixels; half of the time seen in a mirror."""
    width, height = image.size
    left, top, right, bottom = 0, 0, width, height
    for _ in range(10):
        area = width * height * rng.uniform(least, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            right, bottom = left + w, top + h
            break
    view = image.resize((size, size), PIL.Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return PIL.ImageOps.mirror(view) if rng.random() < 0.5 else view


def clean(caption: str, *, words: int = 50) -> str:
    """A caption as training reads it: lower case, without the marks . ! " ( ) * # : ; ~, its first words."""
    return " ".join(caption.lower().translate(UNSAID).split()[:words])


def needed(name: str, path: Path | None, what: str) -> Path:
    """A path that training on real data cannot do without. Raises RebusError when it was not named."""
    if path is None:
        raise RebusError(f"Training on pairs needs {what}, but `{name}` names none. Give `--{name} PATH`.")
    return path
