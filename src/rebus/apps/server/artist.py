"""The thread that draws: pictures of replies while the replies' text, and everybody else's, goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch

from rebus.document import Image
from rebus.errors import RebusError
from rebus.system import System
from rebus.visual import ImageSampling, Progress

TOGETHER = 4
"""Pictures drawn at once at most."""


@dataclass(eq=False)
class Drawing:
    """One picture that is to be drawn."""

    system: System
    image: Image
    source: PIL.Image.Image | None
    generator: torch.Generator
    sampling: ImageSampling
    previews: bool
    """whether anybody looks at it while it is drawn; such a picture is drawn alone"""
    tell: Callable[[Progress | Image | Exception], None] = field(repr=False)
    """gets `Progress`, then the picture or what went wrong; called in the drawing thread"""
    cancelled: bool = False


class Artist:
    """Draws what is asked for, first come first served; pictures of one system with equal settings are drawn together."""

    def __init__(self, name: str, fault: Callable[[Exception], None]) -> None:
        self._fault = fault
        self._asked: list[Drawing] = []
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"{name} draws", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Does the thread run?"""
        return self._thread.is_alive()

    def ask(self, drawing: Drawing) -> None:
        """Put a picture in the queue."""
        with self._change:
            self._asked.append(drawing)
            self._change.notify()

    def close(self) -> None:
        """Finish the picture at hand, then end."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        while group := self._next():
            try:
                self._draw(group)
            except Exception as error:  # whatever it is, the thread goes on for the others
                if not isinstance(error, RebusError):
                    self._fault(error)
                for drawing in group:
                    drawing.tell(error)

    def _next(self) -> list[Drawing]:
        with self._change:
            while True:
                self._asked = [drawing for drawing in self._asked if not drawing.cancelled]
                if self._closed or self._asked:
                    break
                self._change.wait()
            if self._closed:
                return []
            first = self._asked[0]
            alike = [first, *(one for one in self._asked[1:] if _together(first, one))][:TOGETHER]
            self._asked = [one for one in self._asked if one not in alike]
            return alike

    @staticmethod
    def _draw(group: list[Drawing]) -> None:
        pieces: Any = group[0].system.draw(
            [one.image for one in group],
            [one.source for one in group],
            [one.generator for one in group],
            group[0].sampling,
        )
        waiting = iter(group)
        for piece in pieces:
            if all(one.cancelled for one in group):
                pieces.close()
                return
            for one in group if isinstance(piece, Progress) else [next(waiting)]:
                one.tell(piece)


def _together(one: Drawing, other: Drawing) -> bool:
    alike = one.system is other.system and one.sampling == other.sampling
    return alike and not one.previews and not other.previews
