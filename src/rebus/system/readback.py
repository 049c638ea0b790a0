"""A scorer for `best_of`: of several drawings the one in which the model itself best recognises what was asked for.

To draw and to recognise are two directions of one language model, and recognising is the easier one. Reranking by it is
what DALL·E (2102.12092, section 2.6) did with a second model.

Dimension key: none; tensors are made in `lm`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rebus.document import Box, Document, Image, Message, assistant, user
from rebus.errors import RebusError
from rebus.grammar import Modality
from rebus.lm import log_likelihoods
from rebus.sampling import Sampling
from rebus.sequence import collate
from rebus.system.encoding import encode
from rebus.system.parts import System
from rebus.visual import Codes, Progress

ASKED = "What is in this picture?"


@dataclass(frozen=True)
class ReadBack:
    """Scores a reply by how likely the model, asked `question` about its pictures, says the words of the request (natural
    logarithm, summed over words); without a picture -inf.

    Images that the language model reads as codes are judged by the codes that it wrote; others are read from what was
    drawn. Raises RebusError when the last user message of the document has no words.
    """

    system: System
    question: str = ASKED

    @property
    def before_drawing(self) -> bool:
        """Whether replies are judged by what was written, so that only the best one's pictures need to be drawn."""
        return self.system.lm.input_projector is None

    def __call__(self, document: Document, message: Message) -> float:
        """The score of `message` as a reply to `document`."""
        system = self.system
        wish = " ".join(part.strip() for part in document.messages[-1].content if isinstance(part, str)).strip()
        if not wish:
            raise RebusError(
                "A drawing is judged by the words that asked for it, but the last message has none. "
                "Write what to draw, or score by a function of your own."
            )
        shown = [as_read(system, image) for image in message.images]
        if not shown:
            return float("-inf")
        asked = Document((user(*shown, self.question), assistant(wish)))
        if system.tokenizer is not None and any(image.understood is None for image in shown):
            (asked,) = encode(system.tokenizer, [asked], replies="generation")
        sequence = system.grammar.serialize(asked, loss="reply")
        batch = collate([sequence], pad_id=system.grammar.special.pad).to(system.lm.llm.device)
        return float(log_likelihoods(system.lm, batch)[0])


def as_read(system: System, image: Image) -> Image:
    """An image of a reply as the language model reads it when it is shown: the codes that it wrote, where it reads codes."""
    if system.lm.input_projector is None and isinstance(image.generated, Codes):
        return Image(image.pixels, understood=image.generated)
    return Image(image.pixels)


def reply(
    system: System, document: Document, *, modality: Modality, sampling: Sampling, generator: torch.Generator
) -> Iterator[str | Image | Box | Progress]:
    """The assistant's reply as it comes; with `best_of` above 1 the one of so many in whose pictures the model best
    recognises the request, all at once. Raises RebusError as `System.stream` does."""
    if sampling.best_of == 1:
        yield from system.stream(document, modality=modality, sampling=sampling, generator=generator)
        return
    scorer = ReadBack(system)
    messages = system.generate(
        [document], modality=modality, sampling=sampling, generators=[generator], scorer=scorer, rows=32
    )
    for part in messages[0].content:
        if isinstance(part, Image) and part.drawn is not None:
            # pictures that were drawn beside others differ from the same drawn alone by rounding: what is kept can be
            # drawn again bit for bit
            generator = torch.Generator().manual_seed(part.drawn.seed)
            yield from system.draw(
                [Image(generated=part.generated)], [part.drawn.source], [generator], part.drawn.sampling
            )
        else:
            yield part
