"""The embedded pictures in memory: one row a picture, its pixels beside what it shows.

Dimension key: N pictures, h w height and width in pixels
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from rebus.data.parquet import read_columns
from rebus.errors import RebusError

COLUMNS = (
    "key name package family variant concept hexcode label concept_label keywords group subgroup skin_tone gender "
    "split weight licence"
).split()
"""What is known of a picture, beside its pixels (columns `png_64` and `png_128`)."""

WORTH_KEEPING = 1000
"""Fewer pictures than this are decoded every time: that is faster than anybody notices."""


@dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """The pictures of a folder that `emoji_build.build` wrote. Every list has one entry a picture."""

    rgba_N: NDArray[np.uint8]
    """[N, 64, 64, 4], transparent background, alpha not multiplied in."""
    key: list[str]
    """Unique: family, variant and name."""
    name: list[str]
    """The name in its package."""
    package: list[str]
    """The package it comes from."""
    family: list[str]
    """Drawing style: noto, fluent, twemoji, emojione or fxemoji."""
    variant: list[str]
    """flat or 3d in the family fluent, else empty."""
    concept: list[str]
    """What it shows, as code points: the same for all styles, skin tones and genders."""
    hexcode: list[str]
    """The code points of this very picture."""
    label: list[str]
    """What it shows, in words, gender included: `woman firefighter`."""
    concept_label: list[str]
    """What its concept is called: `firefighter`."""
    keywords: list[list[str]]
    """Related words."""
    group: list[str]
    """One of nine groups, as `animals-nature`."""
    subgroup: list[str]
    """One of about a hundred subgroups, as `animal-mammal`."""
    skin_tone: list[str]
    """Empty, or light … dark."""
    gender: list[str]
    """Empty, man, woman or both."""
    split: list[str]
    """train, val, pairs or concepts (see `splits.py`)."""
    weight: list[float]
    """How often to draw it: all variants of one (concept, family) weigh 1 to 1.5 together."""
    licence: list[str]
    """SPDX name."""
    shards: tuple[Path, ...]
    """Where the 128 px versions are read from when they are first asked for."""

    def __len__(self) -> int:
        return len(self.key)

    def __repr__(self) -> str:
        return f"Pictures({len(self):,} from {self.shards[0].parent})"

    def rows(self, split: str, *, family: str | None = None) -> NDArray[np.int64]:
        """Row numbers of a split, optionally of one family. Raises RebusError for a split that does not exist."""
        if split not in ("train", "val", "pairs", "concepts"):
            raise RebusError(f"There is no split {split!r}. The splits are train, val, pairs and concepts; name one.")
        found = [
            row
            for row, (its_split, its_family) in enumerate(zip(self.split, self.family, strict=True))
            if its_split == split and family in (None, its_family)
        ]
        return np.array(found, dtype=np.int64)

    @cached_property
    def _png_128_N(self) -> list[bytes]:
        return [png for path in self.shards for png in read_columns(path, ["png_128"])["png_128"]]

    def rgba_128(self, row: int) -> NDArray[np.uint8]:
        """[128, 128, 4] of one picture, decoded now."""
        return _decode(self._png_128_N[row])

    def image(self, row: int, size: int = 64, background: tuple[int, int, int] = (255, 255, 255)) -> PIL.Image.Image:
        """One picture on a plain background, RGB, `size` pixels square (rendered at 64 or 128, else resized)."""
        rgba_hw = self.rgba_N[row] if size <= 64 else self.rgba_128(row)
        image = PIL.Image.fromarray(over(rgba_hw, np.array(background, np.uint8)))
        return image if image.width == size else image.resize((size, size), PIL.Image.Resampling.LANCZOS)


def over(rgba: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., h, w, 4] over a background that broadcasts to [..., h, w, 3]."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + background * (255 - alpha) + 127
    return (mixed // 255).astype(np.uint8)


def load_pictures(folder: Path | str) -> Pictures:
    """The pictures that were built into `folder`.

    The first call decodes all 64 px pictures and keeps them as `rgba_64.npy` there (if they are many
    and the folder can be written to).
    Raises RebusError if there are none.
    """
    folder = Path(folder)
    shards = tuple(sorted(folder.glob("pictures-*.parquet")))
    if not shards:
        raise RebusError(f"{folder} holds no pictures (pictures-*.parquet). Build them with `rebus data emoji`.")
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for path in shards:
        for name, values in read_columns(path, COLUMNS).items():
            columns[name] += values
    rgba_N = _pixels(folder, shards, len(columns["key"]))
    return Pictures(rgba_N=rgba_N, shards=shards, **columns)


def _pixels(folder: Path, shards: tuple[Path, ...], count: int) -> NDArray[np.uint8]:
    """All 64 px pictures, from the decoded copy if it is there and newer than the shards."""
    decoded = folder / "rgba_64.npy"
    newest = max(path.stat().st_mtime for path in shards)
    if decoded.exists() and decoded.stat().st_mtime >= newest:
        rgba_N = np.load(decoded)
        if rgba_N.shape == (count, 64, 64, 4):
            return rgba_N
    pngs = [png for path in shards for png in read_columns(path, ["png_64"])["png_64"]]
    rgba_N = np.stack([_decode(png) for png in pngs])
    if count < WORTH_KEEPING:
        return rgba_N
    try:
        scratch = decoded.with_suffix(".writing.npy")
        np.save(scratch, rgba_N)
        scratch.replace(decoded)
    except OSError:  # a folder that cannot be written to is decoded every time
        pass
    return rgba_N


def _decode(png: bytes) -> NDArray[np.uint8]:
    with PIL.Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGBA"))


def plain_rows(pictures: Pictures, split: str) -> list[int]:
    """The pictures of a split that show a thing itself: no skin tones, no genders."""
    return [int(row) for row in pictures.rows(split) if not pictures.skin_tone[row] and not pictures.gender[row]]
