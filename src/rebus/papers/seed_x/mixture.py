"""What SEED-X's language model was trained on, as tables: which sets (table 4), and how long, how large and how often where
that was published.

Published are the loaders of instruction tuning (chat, edit), and an example for pre-training in the authors' later code: captions
and reading, half and half. The weights and lengths of all other sources are our choice. The sets themselves are not part of
this library; a user names where each lies.
"""

from __future__ import annotations

from collections.abc import Mapping

from rebus.data.filters import Keep
from rebus.data.source_batches import Source

CAPTIONS = ("LAION-COCO", "SAM", "Unsplash", "LAION-Aesthetics", "JourneyDB", "CapsFusion")
ALIKE = Keep(similarity=0.1)
LARGE = Keep(similarity=0.1, side=400, aspect=0.6)
"""What edits and drawings were chosen by."""

PRETRAIN: tuple[Source, ...] = (
    Source("captions", CAPTIONS, 600, 28, 0.5, "caption", template="caption", keep=ALIKE),
    Source("grounded captions", ("GRIT",), 600, 28, 0.1, "caption", template="grounded", keep=ALIKE),
    Source("pages", ("MMC4", "OBELICS", "OpenFlamingo"), 1024, 8, 0.2, "interleaved"),
    Source("reading", ("LLaVAR", "Slides"), 512, 4, 0.5, template="question"),
    Source("text", ("Wikipedia",), 1024, 8, 0.1, "text", template="text"),
)
"""Pre-training."""

CHAT: tuple[Source, ...] = (
    Source(
        "conversations",
        (
            "LLaVAR",
            "Text-rich QA",
            "MIMIC-IT",
            "MathQA",
            "ChartQA",
            "AI2D",
            "ScienceQA",
            "KVQA",
            "DVQA",
            "Grounded QA",
            "Referencing QA",
            "LLaVA-150k",
            "ShareGPT4V",
            "VLIT",
            "LVIS-Instruct4V",
            "Vision-Flan",
            "ALLaVA-4V",
        ),
        880,
        2,
        0.6,
        template="turns",
    ),
    Source("drawings", CAPTIONS, 260, 8, 0.2, template="draw", keep=LARGE),
)
EDIT: tuple[Source, ...] = (
    Source("edits", ("InstructPix2Pix", "MagicBrush"), 320, 6, 0.4, template="edit", keep=LARGE),
    Source("automatic edits", ("OpenImages-editing", "Unsplash-editing"), 320, 6, 0.2, template="edit", keep=LARGE),
)
STORY: tuple[Source, ...] = (Source("stories", ("VIST",), 1024, 4, 1.0, template="story"),)
LAYOUT: tuple[Source, ...] = (Source("slides", ("Slides",), 880, 4, 1.0, template="layout"),)
TRY_ON: tuple[Source, ...] = (Source("clothes", ("VITON-HD",), 320, 6, 1.0, template="wear"),)

INSTRUCT: Mapping[str, tuple[Source, ...]] = {
    "chat": CHAT,
    "edit": EDIT,
    "story": STORY,
    "layout": LAYOUT,
    "try_on": TRY_ON,
}
"""Instruction tuning: the sources of each speciality."""
