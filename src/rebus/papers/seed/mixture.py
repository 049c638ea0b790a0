"""What SEED-LLaMA's language model was trained on, as tables: which sets, how long, how often (the published configs).

The sets themselves are not part of this library. A user names where each lies; `unnamed` says what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rebus.data.filters import KEEP_ALL, Keep
from rebus.errors import RebusError

Form = Literal["caption", "interleaved", "video", "text", "instruction"]


@dataclass(frozen=True)
class Source:
    """Sets of one kind that are drawn from together; a batch comes from one source."""

    name: str
    """What the source is called."""
    sets: tuple[str, ...]
    """The sets in it."""
    max_length: int
    """Longest document in words; longer ones are cut at the end."""
    batch: int
    """Documents of one process's batch."""
    weight: float
    """How often a batch comes from here, relative to the others."""
    form: Form = "instruction"
    """How its documents are laid out. `caption`: image and caption in either order; `interleaved`: as the page had them;
    `video`: frames, then the caption, which alone is learned; `text`: plain; `instruction`: the chat template."""
    images: int | None = None
    """Most images of a document; none: as many as there are."""
    swap: float = 0.0
    """How often every image of a document changes places with what follows it."""
    template: str = "question"
    """How its records are worded, a name of `templates.TEMPLATES`; documents of chat messages are taken as they are."""
    keep: Keep = KEEP_ALL
    """Which pictures are good enough."""


CHOSEN = Keep(similarity=0.25, side=180, aspect=0.55)
"""What pairs were chosen by."""

PRETRAIN: tuple[Source, ...] = (
    Source("captions", ("Unsplash", "CC3M", "COCO"), 200, 116, 0.5, "caption", template="caption", keep=CHOSEN),
    Source("laion-coco", ("LAION-COCO",), 140, 164, 5.0, "caption", template="caption", keep=CHOSEN),
    Source("mmc4", ("MMC4",), 1024, 26, 2.0, "interleaved", images=7, swap=0.5),
    Source("obelics", ("OBELICS",), 1024, 26, 1.0, "interleaved"),
    Source("webvid", ("WebVid-10M",), 200, 116, 0.5, "video", images=4, template="video"),
    Source("wikipedia", ("Wikipedia en",), 1024, 26, 1.0, "text", template="text"),
)
"""Stage 3: six sources."""

INSTRUCT: tuple[Source, ...] = (
    Source("differences", ("CGD",), 200, 160, 0.15, template="difference"),
    Source("stories", ("VIST",), 360, 80, 0.08, template="story"),
    Source("editing", ("MagicBrush", "InstructPix2Pix"), 100, 256, 0.5, template="edit"),
    Source("llava conversations", ("LLaVA conversation",), 512, 60, 0.15, template="turns"),
    Source("svit", ("SVIT",), 1024, 32, 0.2, template="turns"),
    Source("vqav2", ("VQAv2",), 100, 256, 0.2),
    Source("knowledge questions", ("OK-VQA", "VizWiz", "A-OKVQA"), 100, 256, 0.1),
    Source("visual dialog", ("VisDial",), 360, 80, 0.15, template="turns"),
    Source("coco captions", ("COCO",), 100, 256, 0.2, template="describe or draw"),
    Source("video captions", ("MSR-VTT", "MSVD"), 200, 160, 0.1, template="describe"),
    Source("video questions", ("NExT-QA", "ActivityNet-QA"), 360, 80, 0.15),
    Source("video conversations", ("Video-ChatGPT",), 512, 60, 0.2, template="turns"),
    Source("llava captions", ("LLaVA-CC3M-595k", "LRV"), 400, 80, 0.4),
    Source("journeydb", ("JourneyDB",), 128, 200, 0.5, template="draw"),
    Source("laion-aesthetic", ("LAION-aesthetic",), 100, 256, 0.5, template="draw"),
    Source("reading", ("TextCaps", "TextVQA", "OCR-VQA"), 100, 256, 0.1),
    Source("llavar", ("LLaVAR",), 360, 80, 0.08, template="turns"),
    Source("spatial relations", ("VSR",), 100, 256, 0.05),
)
"""Stage 4: eighteen sources."""


def unnamed(sources: Sequence[Source], named: Collection[str]) -> list[str]:
    """The sets of `sources` that `named` does not have. Raises RebusError for a name that is in none of them."""
    known = [name for source in sources for name in source.sets]
    if strange := sorted(set(named) - set(known)):
        raise RebusError(
            f"{strange[0]!r} is in no source of this mixture. The sets are {', '.join(known)}. Name some of these."
        )
    return [name for name in known if name not in named]
