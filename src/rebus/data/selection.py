"""The pictures of one split, indexed for making documents: which to draw, what else could be meant, what may be said."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property
from itertools import accumulate
from random import Random

import PIL.Image

from rebus.data.backdrops import COLOURS
from rebus.data.pictures import Pictures
from rebus.data.scenes import Things
from rebus.data.wording import EVERYDAY, STYLES, article, named, style_name
from rebus.document import Image, Shown
from rebus.errors import RebusError

SHARE = {"flags": 0.4, "symbols": 0.6}
"""A sixth of all concepts are flags: documents speak of flags and symbols less often than of other things."""


class Selection:
    """The pictures of `split`; raises RebusError if there are none. Nothing of another split is shown or named."""

    def __init__(self, pictures: Pictures, split: str) -> None:
        self.pictures, self.split = pictures, split
        self.rows = [int(row) for row in pictures.rows(split)]
        if not self.rows:
            raise RebusError(
                f"These pictures have none of split {split!r}. Build the whole set, or name another split."
            )
        self._weights = list(accumulate(pictures.weight[row] * SHARE.get(pictures.group[row], 1) for row in self.rows))
        self._same: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        self._of_group: dict[str, list[int]] = defaultdict(list)
        for row in self.rows:
            self._same[self._shown(row)].append(row)
            if not pictures.skin_tone[row] and not pictures.gender[row]:
                self._of_group[pictures.group[row]].append(row)
        self.groups = sorted(group for group, rows in self._of_group.items() if len(rows) >= 4)

    @cached_property
    def things(self) -> Things:
        """Those that may stand in scenes."""
        return Things(self.pictures, self.split)

    @cached_property
    def _foreign(self) -> re.Pattern[str]:
        return re.compile(r"\b(" + "|".join(map(re.escape, foreign_names(self.pictures, self.split))) + r")\b", re.I)

    def _shown(self, row: int) -> tuple[str, str, str]:
        """What two pictures must share to be the same thing in another style."""
        return self.pictures.concept[row], self.pictures.label[row], self.pictures.skin_tone[row]

    def pick(self, rng: Random) -> int:
        """The row of a picture, by weight."""
        return rng.choices(self.rows, cum_weights=self._weights)[0]

    def pick_from(self, group: str, rng: Random, count: int) -> list[int]:
        """Rows of up to `count` pictures of a group, of different names."""
        rows: dict[str, int] = {}
        for row in rng.sample(self._of_group[group], min(4 * count, len(self._of_group[group]))):
            rows.setdefault(self.pictures.label[row], row)
        return list(rows.values())[:count]

    def in_other_style(self, row: int, rng: Random) -> int | None:
        """The same thing in another style, if this split has it."""
        style = self.style(row)
        others = [other for other in self._same[self._shown(row)] if self.style(other) != style]
        return rng.choice(others) if others else None

    def something_else(self, row: int, rng: Random) -> int:
        """A picture of something else, half the time of the same group; never one whose name contains this one's."""
        label = set(self.pictures.label[row].split())
        pool = self._of_group[self.pictures.group[row]] if rng.random() < 0.5 else self.rows
        for _ in range(50):
            other = rng.choice(pool or self.rows)
            words = set(self.pictures.label[other].split())
            if self.pictures.concept[other] != self.pictures.concept[row] and not words <= label and not label <= words:
                return other
        return next((o for o in self.rows if self.pictures.concept[o] != self.pictures.concept[row]), row)

    def name(self, row: int) -> str:
        """What it shows, with its article: `a red apple`."""
        return named(self.pictures, row)

    def wish(self, row: int, rng: Random) -> str:
        """What someone calls it who wants it drawn: its name, or the everyday word for it."""
        word = EVERYDAY.get(self.pictures.label[row])
        if word is None or self._foreign.search(word) or rng.random() < 0.6:
            return self.name(row)
        return article(word)

    def style(self, row: int) -> str:
        """`Noto`, `Fluent 3D`, …"""
        return style_name(self.pictures, row)

    def other_style_name(self, row: int, rng: Random) -> str:
        """The name of some other style."""
        return rng.choice([style for style in STYLES.values() if style != self.style(row)])

    def keywords(self, row: int, rng: Random, count: int = 3) -> list[str]:
        """A few related words, none of which names something of another split."""
        words = [word for word in self.pictures.keywords[row] if not self._foreign.search(word)]
        return rng.sample(words, min(count, len(words)))

    def image(self, row: int, size: int, colour: str = "white") -> Image:
        """The picture on a plain background."""
        return Image(self.pixels(row, size, colour), shows=self.shown(row))

    def shown(self, row: int) -> Shown:
        """The name of its concept, and its style."""
        return Shown(self.pictures.concept_label[row], self.style(row))

    def pixels(self, row: int, size: int, colour: str = "white") -> PIL.Image.Image:
        return self.pictures.image(row, size, COLOURS[colour])


def foreign_names(pictures: Pictures, split: str) -> list[str]:
    """Names of what is shown in other splits and not in this one: they are not to be written in its documents."""
    own = {pictures.concept[row] for row in pictures.rows(split)}
    own_names = {
        name(row)
        for row in pictures.rows(split)
        for name in (pictures.label.__getitem__, pictures.concept_label.__getitem__)
    }
    foreign = set()
    for row, concept in enumerate(pictures.concept):
        if concept not in own:
            foreign |= {pictures.label[row], pictures.concept_label[row]}
    return sorted(foreign - own_names)
