"""The embedded data as SEED-X's mini is trained on it: kinds of documents by their share, edits among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rebus.data.edit_chains import SHAPES, EditDocuments
from rebus.data.emoji import EmojiDocuments
from rebus.data.line_art import FILE, load_line_art
from rebus.data.mixture import Mixture
from rebus.data.pictures import Pictures, load_pictures
from rebus.data.sources import Documents

PRETRAIN: Mapping[str, float] = {
    "caption": 0.24,
    "draw": 0.28,
    "scene_boxes": 0.12,
    "scene_caption": 0.05,
    "scene_draw": 0.07,
    "where": 0.06,
    "album": 0.05,
    "two_pictures": 0.04,
    "read_words": 0.05,
    "facts": 0.04,
}
"""Captions in both directions, grounded captions, interleaved pages, reading, text."""

INSTRUCT: Mapping[str, Mapping[str, float]] = {
    "chat": {
        "describe": 0.16,
        "request": 0.26,
        "question": 0.1,
        "scene_question": 0.05,
        "where": 0.16,
        "what_there": 0.05,
        "small_thing": 0.09,
        "two_pictures": 0.04,
        "chat": 0.09,
    },
    "edit": {"edit": 0.65, "edits": 0.35},
    "story": {"story": 0.5, "story_turns": 0.5},
    "layout": {"slide": 0.4, "slide_layout": 0.6},
    "try_on": {"wear": 1.0},
}
"""Each speciality's kinds of documents."""


def read_embedded(work: Path) -> tuple[Pictures, Mapping | None]:
    """The pictures under `work/emoji`, and their line drawings where `rebus data lines` has made some."""
    folder = work / "emoji"
    lines = load_line_art(folder / FILE) if (folder / FILE).exists() else None
    return load_pictures(folder), lines


def documents(pictures: Pictures, lines: Mapping | None, split: str, seed: int, mix: Mapping[str, float]) -> Mixture:
    """Documents of one split, each kind as often as `mix` says. Raises RebusError for a kind that does not exist."""
    edits = {kind: share for kind, share in mix.items() if kind in SHAPES}
    others = {kind: share for kind, share in mix.items() if kind not in SHAPES}
    sources: dict[str, Documents] = {}
    if others or not edits:
        sources["emoji"] = EmojiDocuments(pictures, split, seed, others)
    if edits:
        sources["edits"] = EditDocuments(pictures, split, seed, edits, lines=lines)
    weights = {"emoji": sum(others.values()), "edits": sum(edits.values())}
    return Mixture(sources, {name: weights[name] for name in sources}, seed)
