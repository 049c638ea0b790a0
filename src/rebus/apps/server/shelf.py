"""The conversations that /v1/responses can go on from: a few, in memory, each for whoever began it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rebus.apps.server.settings import ServerConfig
from rebus.document import Document, Image


@dataclass(frozen=True, eq=False)
class Kept:
    """A response, the conversation that it ends, and the pictures that were drawn in it by the names of their calls."""

    body: dict[str, Any]
    document: Document
    drawn: dict[str, Image]

    @property
    def pixels(self) -> int:
        """Pixels of all pictures in it."""
        return sum(i.pixels.width * i.pixels.height for i in self.document.images if i.pixels is not None)


class Shelf:
    """Keeps the latest responses: at most so many, with at most so many pixels."""

    def __init__(self, config: ServerConfig) -> None:
        self._most, self._pixels = config.responses, config.response_pixels
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()

    def put(self, owner: str, name: str, kept: Kept) -> None:
        """Keep a response; the oldest make room."""
        self._kept[owner, name] = kept
        while self._kept and (
            len(self._kept) > self._most or sum(one.pixels for one in self._kept.values()) > self._pixels
        ):
            self._kept.popitem(last=False)

    def get(self, owner: str, name: str) -> Kept | None:
        """A response of this owner's, where it is still kept."""
        if kept := self._kept.get((owner, name)):
            self._kept.move_to_end((owner, name))
        return kept

    def remove(self, owner: str, name: str) -> bool:
        """Forget a response. Was it there?"""
        return self._kept.pop((owner, name), None) is not None
