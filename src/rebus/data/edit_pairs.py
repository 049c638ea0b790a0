"""Batches for training image decoders that may see a source: pure pictures, and edits with the picture they begin from.

Dimension key: I images · h w sides in pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import PIL.Image
import torch
from torch import Tensor

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.lines import Unreadable
from rebus.data.loader import position_of
from rebus.data.mixture import shuffled
from rebus.data.sources import Documents, open_source
from rebus.errors import RebusError
from rebus.images import prepare

HALF = (0.5, 0.5, 0.5)


class EditBatch(NamedTuple):
    """Pictures in −1..1; where there is no source, its pixels are zero and `seen_I` is false."""

    target_I3hw: Tensor
    source_I3hw: Tensor
    seen_I: Tensor


class EditBatches:
    """Batches without end, from `position` on: the picture of a document of `pictures`, or with probability `share` the
    last picture of a document of `edits` with its first as the source. Each epoch has an order of its own; all is a pure
    function of the seed and the position. A pure picture is resized until it covers the square and its middle taken; an
    edit's are stretched to it, as SEED-X draws them. Documents that cannot be read, or that `keep` refuses, are left out
    and counted. Raises RebusError when there are fewer documents than a batch holds, or edits are to be drawn and none are
    named."""

    def __init__(
        self,
        pictures: Path,
        edits: Path | None,
        batch: int,
        side: int,
        *,
        share: float = 0.0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        keep: Keep = KEEP_ALL,
    ) -> None:
        if (share > 0) != (edits is not None):
            raise RebusError(
                f"The share of edits in a batch is {share}, but {'a' if edits else 'no'} source of edits was named. Name "
                "one, or set the share to 0."
            )
        self.sources: list[Documents] = [open_source(pictures, "caption", keep)]
        if edits is not None:
            self.sources.append(open_source(edits, "both", keep))
        self.batch, self.side, self.share, self.seed = batch, side, share, seed
        self.rank, self.world = rank, world
        self.position = self.skipped = 0
        if len(self.sources[0]) < batch * world:
            raise RebusError(
                f"{pictures} holds {len(self.sources[0])} documents, but a step takes {batch * world}. Name more data, or "
                "make the batch smaller."
            )

    def __iter__(self) -> Iterator[EditBatch]:
        in_vain = 0
        while True:
            found = self._make(self.position)
            self.position += 1
            in_vain = 0 if found else in_vain + 1
            if in_vain >= 100:
                raise RebusError(f"{in_vain} batches in a row hold no picture that can be read. Check the data.")
            if found is not None:
                yield found

    def state_dict(self) -> dict[str, Any]:
        """Position, and how many documents were skipped."""
        return {"position": self.position, "skipped": self.skipped, "step": self.batch * self.world}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self.position, self.skipped = position_of(state, self.batch * self.world), state["skipped"]

    def _make(self, index: int) -> EditBatch | None:
        pairs = []
        start = (index * self.world + self.rank) * self.batch
        for position in range(start, start + self.batch):
            which = int(Random(f"edits {self.seed} {position}").random() < self.share)
            try:
                pairs.append(self._pictures(which, position))
            except Unreadable:
                self.skipped += 1
        if not pairs:
            return None
        nothing = torch.zeros(3, self.side, self.side)
        return EditBatch(
            torch.stack([self._pixels(target, stretched=source is not None) for target, source in pairs]),
            torch.stack([nothing if source is None else self._pixels(source, stretched=True) for _, source in pairs]),
            torch.tensor([source is not None for _, source in pairs]),
        )

    def _pictures(self, which: int, position: int) -> tuple[PIL.Image.Image, PIL.Image.Image | None]:
        documents = self.sources[which]
        epoch, place = divmod(position, len(documents))
        images = documents[shuffled(place, len(documents), f"{self.seed} edits {which} {epoch}")].images
        pixels = [image.pixels for image in images if image.pixels is not None]
        if len(pixels) <= which:
            raise Unreadable("A document has too few pictures with pixels. It is skipped.")
        return pixels[-1], pixels[0] if which else None

    def _pixels(self, picture: PIL.Image.Image, *, stretched: bool) -> Tensor:
        crop = "none" if stretched else "centre"
        return prepare([picture], self.side, resize="bicubic", crop=crop, mean=HALF, std=HALF)[0]  # type: ignore[arg-type]
