"""Which pictures are good enough to train on. What is refused raises Unreadable, so that loaders skip and count it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rebus.data.lines import Unreadable
from rebus.document import Image


@dataclass(frozen=True)
class Keep:
    """What a picture must be; the defaults keep everything."""

    similarity: float | None = None
    """Least similarity of image and text, of those that say theirs."""
    side: int = 0
    """Least length of the shorter side in pixels."""
    aspect: float | None = None
    """Least ratio of width to height, a number in (0, 1]; its inverse is the largest."""

    def check(self, images: Iterable[Image], name: str, similarity: object = None) -> None:
        """Raises Unreadable, naming what disagrees, unless all images pass. Those without pixels do."""
        if self.similarity is not None and isinstance(similarity, int | float) and similarity < self.similarity:
            raise Unreadable(f"{name} has a similarity of {similarity:.3f}, below {self.similarity}. It is skipped.")
        for image in images:
            if image.pixels is None:
                continue
            width, height = image.pixels.size
            if min(width, height) < self.side:
                raise Unreadable(f"{name} is {width} × {height}, narrower than {self.side} pixels. It is skipped.")
            if self.aspect is not None and not self.aspect <= width / height <= 1 / self.aspect:
                raise Unreadable(f"{name} is {width} × {height}, more oblong than {self.aspect}. It is skipped.")


KEEP_ALL = Keep()
