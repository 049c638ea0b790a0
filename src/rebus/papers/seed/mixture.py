"""What SEED-LLaMA's language model was trained on, as tables: which sets, how long, how often (the published configs).

The sets themselves are not part of this library. A user names where each lies; how the words of a record are laid out
is in `templates.py`.
"""

from __future__ import annotations

from rebus.data.filters import Keep
from rebus.data.source_batches import Source

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
