"""Which pictures may be trained on: splits by a hash of the concept, so that anyone can recompute them.

A *concept* is what a picture shows, whoever drew it: the Unicode code points of the emoji without skin tone, gender,
direction and presentation. A *family* is a drawing style.

    concepts   about 250 concepts that no training sees, in any style        → does it generalise to new things?
    pairs      5 % of the (concept, family) pairs: known thing, known style, never together
    val        about 60 further concepts and 2 % of the pairs: all tuning and looking happens here
    train      everything else, for every trained part and every scorer
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

Split = Literal["train", "val", "pairs", "concepts"]

SALT = "rebus emoji split 1"
CONCEPTS_SHARE = 0.148
"""Share of concepts held out for good: about 250 of 1,690."""
VAL_CONCEPTS_SHARE = 0.036
"""Share of concepts for validation: about 60."""
PAIRS_SHARE = 0.05
VAL_PAIRS_SHARE = 0.02

_DROPPED = {"fe0e", "fe0f", *(f"1f3f{d}" for d in "bcdef"), "2640", "2642"}
_NEUTRAL = {
    **dict.fromkeys(("1f468", "1f469"), "1f9d1"),  # man, woman → person
    **dict.fromkeys(("1f466", "1f467"), "1f9d2"),  # boy, girl → child
    **dict.fromkeys(("1f474", "1f475"), "1f9d3"),  # old man, old woman → older person
    **dict.fromkeys(("1f934", "1f478"), "1fac5"),  # prince, princess → person with crown
    **dict.fromkeys(("1f930", "1fac3"), "1fac4"),  # pregnant woman, man → person
    **dict.fromkeys(("1f385", "1f936"), "1f9d1-200d-1f384"),  # Santa, Mrs Claus → Mx Claus
    **dict.fromkeys(("1f46b", "1f46c", "1f46d"), "1f9d1-200d-1f91d-200d-1f9d1"),  # two people holding hands
}
_PAIRS = {  # two people, or two hands, of different skin tones are spelt as two joined by something
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",  # kiss
    "1f9d1-200d-2764-200d-1f9d1": "1f491",  # couple with heart
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",  # people with bunny ears
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",  # people wrestling
    "1faf1-200d-1faf2": "1f91d",  # handshake
}
_FAMILY = re.compile(r"(1f9d1|1f9d2)(-200d-(1f9d1|1f9d2))+")


def concept_of(hexcode: str) -> str:
    """The concept of an emoji given as code points joined by `-`: `1f469-1f3fd-200d-1f692` → `1f9d1-200d-1f692`."""
    points = [point for point in hexcode.lower().split("-") if point not in _DROPPED]
    code = "-".join(_NEUTRAL.get(point, point) for point in points)
    code = re.sub(r"(-200d)+(?=-200d|$)", "", code)  # the joiner of a gender sign that was dropped
    code = code.removesuffix("-200d-27a1")  # facing right
    return "1f46a" if _FAMILY.fullmatch(code) else _PAIRS.get(code, code)


def _uniform(text: str) -> float:
    """A number in 0..1 that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(f"{SALT}|{text}".encode()).digest()[:8], "big") / 2**64


def split_of(concept: str, family: str) -> Split:
    """The split of the pictures of `concept` drawn by `family`."""
    of_concept = _uniform(concept)
    if of_concept < CONCEPTS_SHARE:
        return "concepts"
    if of_concept < CONCEPTS_SHARE + VAL_CONCEPTS_SHARE:
        return "val"
    of_pair = _uniform(f"{concept}|{family}")
    if of_pair < PAIRS_SHARE:
        return "pairs"
    return "val" if of_pair < PAIRS_SHARE + VAL_PAIRS_SHARE else "train"
