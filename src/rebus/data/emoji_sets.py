"""The emoji sets as published: which drawings there are, which concept each shows, and how it is called.

Five drawing families from six packages: `fluent` is one family with two variants, flat and 3d. Code points come from
the sets themselves where they say them (`chars.json`, file names); emojione and fxemoji give only names, which
`emoji_names.json` maps to code points (matched against the other sets' names, Unicode names and shortcodes, and looked
through by eye; what did not match, or showed something else, is left out).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rebus.data.splits import concept_of
from rebus.packages import PACKAGES, Progress, fetch

SETS = {  # package → family, variant
    "noto": ("noto", ""),
    "fluent-emoji-flat": ("fluent", "flat"),
    "fluent-emoji-3d": ("fluent", "3d"),
    "twemoji": ("twemoji", ""),
    "emojione": ("emojione", ""),
    "fxemoji": ("fxemoji", ""),
}

_TONES = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
_WOMEN = {"2640", "1f469", "1f467", "1f475", "1f478", "1f930", "1f936", "1f46d"}
_MEN = {"2642", "1f468", "1f466", "1f474", "1f934", "1fac3", "1f385", "1f46c"}
_COMPONENTS = {*_TONES, "1f9b0", "1f9b1", "1f9b2", "1f9b3"}
"""Skin and hair swatches: parts of emoji, not pictures of anything."""


@dataclass(frozen=True)
class Drawing:
    """One picture of a set, not yet rendered."""

    package: str
    """Where it comes from: a key of SETS."""
    name: str
    """Its name there."""
    hexcode: str
    """Code points joined by `-`, lower case, without presentation selectors."""
    source: str | Path
    """SVG text, or the path of a WebP file."""


@dataclass(frozen=True)
class Meaning:
    """What a picture shows, in words."""

    concept: str
    label: str
    concept_label: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    skin_tone: str
    gender: str


def plain(hexcode: str) -> str:
    """Code points without presentation selectors, lower case: the spelling that all sets share."""
    return "-".join(point for point in hexcode.lower().split("-") if point not in ("fe0e", "fe0f"))


def drawings(cache: Path, progress: Progress | None = None) -> Iterator[Drawing]:
    """All drawings of the six packages that have code points, in a fixed order (fetching what the cache lacks)."""
    names = json.loads(files("rebus.data").joinpath("emoji_names.json").read_text())
    for package in SETS:
        folder = fetch(package, cache, progress)
        if package == "fluent-emoji-3d":
            for path in sorted((folder / "assets").glob("*.webp")):
                yield Drawing(package, path.stem, plain(path.stem), path)
            continue
        icons = json.loads((folder / "icons.json").read_text())
        codes = names.get(package) or _codes_of_names(json.loads((folder / "chars.json").read_text()))
        for name, code in sorted(codes.items()):
            yield Drawing(package, name, plain(code), _svg(icons, name))


def _codes_of_names(chars: dict[str, str]) -> dict[str, str]:
    """`{code points: name}` turned round; of several spellings of one name the longest (fully qualified) one."""
    return {name: code for code, name in sorted(chars.items(), key=lambda item: (len(item[0]), item[0]))}


def _svg(icons: dict[str, Any], name: str) -> str:
    """The SVG document of an icon; an alias may be its parent mirrored."""
    flips = ""
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        flips += "h" * bool(alias.get("hFlip")) + "v" * bool(alias.get("vFlip"))
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", icons["width"]), icon.get("height", icons["height"])
    body = icon["body"]
    if flips.count("h") % 2:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    if flips.count("v") % 2:
        body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} viewBox="{left} {top} {width} {height}">{body}</svg>'


class Dictionary:
    """Labels, keywords and groups of every emoji, from emojibase."""

    def __init__(self, cache: Path, progress: Progress | None = None) -> None:
        folder = fetch("emojibase-data", cache, progress)
        groups = json.loads((folder / "meta" / "groups.json").read_text())
        self._groups, self._subgroups = groups["groups"], groups["subgroups"]
        self._entries = {plain(e["hexcode"]): e for e in json.loads((folder / "en" / "data.json").read_text())}
        self._of_concept: dict[str, dict[str, Any]] = {}
        for code, entry in self._entries.items():
            concept = concept_of(code)
            if code == concept or concept not in self._of_concept:
                self._of_concept[concept] = entry

    def meaning(self, hexcode: str) -> Meaning | None:
        """What the emoji `hexcode` shows; None for one that the dictionary does not know, and for swatches."""
        points = hexcode.split("-")
        concept = concept_of(hexcode)
        if hexcode in _COMPONENTS or concept not in self._of_concept:
            return None
        without_tone = "-".join(point for point in points if point not in _TONES)
        of_concept = self._of_concept[concept]
        entry = self._entries.get(without_tone, of_concept)
        sexes = [word for word, marks in (("woman", _WOMEN), ("man", _MEN)) if marks & set(points)]
        if "1f46b" in points:
            sexes = ["woman", "man"]
        return Meaning(
            concept=concept,
            label=readable(entry["label"]),
            concept_label=readable(of_concept["label"]),
            keywords=tuple(entry.get("tags", ())),
            group=self._groups[str(entry["group"])] if "group" in entry else "symbols",
            subgroup=self._subgroups[str(entry["subgroup"])] if "subgroup" in entry else "alphanum",
            skin_tone=" and ".join(dict.fromkeys(_TONES[point] for point in points if point in _TONES)),
            gender=" and ".join(sexes),
        )


def readable(label: str) -> str:
    """A dictionary label as one would say it: `flag: France` → `flag of France`, `man: bald` → `bald man`."""
    label = label.translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
    label = label.replace("regional indicator", "letter")
    if ": " not in label:
        return label
    head, tail = label.split(": ", 1)
    if head == "flag":
        return f"flag of {tail}"
    if head == "keycap":
        return f"keycap {tail}"
    if tail == "bald":
        return f"bald {head}"
    if tail.startswith("facing"):
        return f"{head}, {tail}"
    several = re.sub(r", (?=[^,]*$)", " and ", tail)
    return f"{head} with {several}" if head in ("family", "man", "woman", "person") else f"{head}, {several}"


def licence_of(package: str) -> str:
    """SPDX name of the licence of a set's pictures."""
    return PACKAGES[package].licence
