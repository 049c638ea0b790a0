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
from rebus.mini.moving import MovedSource

PRETRAIN: Mapping[str, float] = {
    "caption": 0.22,
    "draw": 0.24,
    "scene_boxes": 0.1,
    "scene_caption": 0.03,
    "scene_draw": 0.06,
    "where": 0.06,
    "small_thing": 0.03,
    "album": 0.05,
    "two_pictures": 0.04,
    "edit": 0.12,
    "read_words": 0.03,
    "facts": 0.02,
}
"""Captions in both directions, grounded captions, interleaved pages, edits, reading, text. (The paper has no edits here; without
them nothing would teach a short run to draw what it reads, which editing and stories begin from.)"""

INSTRUCT: Mapping[str, Mapping[str, float]] = {
    "chat": {
        "describe": 0.16,
        "request": 0.25,
        "question": 0.1,
        "scene_question": 0.05,
        "scene_request": 0.05,
        "where": 0.1,
        "what_there": 0.04,
        "small_thing": 0.11,
        "two_pictures": 0.03,
        "album": 0.06,
        "chat": 0.05,
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


def documents(
    pictures: Pictures, lines: Mapping | None, split: str, seed: int, mix: Mapping[str, float], *, moved: float = 0.0
) -> Mixture:
    """Documents of one split, each kind as often as `mix` says; of all but edits the share `moved` of the pictures that are
    read is augmented. Raises RebusError for a kind that does not exist."""
    edits = {kind: share for kind, share in mix.items() if kind in SHAPES}
    others = {kind: share for kind, share in mix.items() if kind not in SHAPES}
    sources: dict[str, Documents] = {}
    if others or not edits:
        plain = EmojiDocuments(pictures, split, seed, others)
        sources["emoji"] = MovedSource(plain, share=moved, seed=seed) if moved else plain
    if edits:
        sources["edits"] = EditDocuments(pictures, split, seed, edits, lines=lines)
    weights = {"emoji": sum(others.values()), "edits": sum(edits.values())}
    return Mixture(sources, {name: weights[name] for name in sources}, seed)
