"""The model's own unconditional image: what it writes when nothing was asked for. The published text-to-image evaluation
leads guidance away from it (SEED-LLaMA's code; guidance 5 there).

Dimension key: none
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rebus.document import Document, Image
from rebus.errors import RebusError
from rebus.sampling import Sampling
from rebus.system import System
from rebus.visual import Codes


def unconditional_image(
    system: System, *, sampling: Sampling | None = None, generator: torch.Generator | None = None
) -> Codes:
    """The codes that follow the beginning of a document and an image's opening mark, for `negatives` of a detokenizer.
    Raises RebusError when the reply has no room for an image."""
    blind = replace(system, tokenizer=None, detokenizer=None)
    generators = None if generator is None else [generator]
    (message,) = blind.generate(
        [Document(())], modality="image", sampling=sampling, generators=generators, template="plain"
    )
    codes = next((part.generated for part in message.content if isinstance(part, Image)), None)
    if not isinstance(codes, Codes):
        raise RebusError(
            f"Codes were expected as the unconditional image, but the reply holds {len(message.content)} parts and no "
            "codes. Give a SEED system, and room for an image."
        )
    return codes
