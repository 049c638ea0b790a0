"""How Mosaic spells: a mark, the colours of the cells, a closing mark (section 3).

The same words serve for reading and for writing an image. Dimension key: V vocabulary
"""

from __future__ import annotations

import torch

from rebus.document import Document, Image, Part
from rebus.errors import RebusError
from rebus.grammar import (
    CHATML,
    Allow,
    Force,
    LossKind,
    Modality,
    Place,
    SpecialTokens,
    Template,
    TemplateName,
    Writer,
    open_image,
    special_id,
)
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.sequence import Sequence
from rebus.visual import Codes

PLAIN = Template(begin="<|endoftext|>", end="<|im_end|>")


class MosaicGrammar:
    """Documents ↔ words: `codes` colours behind the words of `text`, then the two marks; `cells` colours an image."""

    def __init__(self, text: TextTokenizer, codes: int, cells: int, source: str) -> None:
        self.text, self.codes, self.cells, self.source = text, codes, cells, source
        self.special = SpecialTokens(
            eos=special_id(text, "<|im_end|>"),
            pad=special_id(text, "<|endoftext|>"),
            begin_image=text.words + codes,
            end_image=text.words + codes + 1,
            bos=special_id(text, "<|endoftext|>"),
        )
        self.vocabulary = text.words + codes + 2
        words = torch.arange(self.vocabulary)
        in_text_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        in_text_V[: text.words] = text.text_V
        in_text_V[self.special.eos] = True
        self._text = Allow(in_text_V)
        self._any = Allow(in_text_V | (words == self.special.begin_image))
        self._colour = Allow((words >= text.words) & (words < text.words + codes))

    def serialize(
        self,
        document: Document,
        *,
        reply: Modality | None = None,
        template: TemplateName = "chat",
        loss: LossKind = "reply",
    ) -> Sequence:
        """Lay a document out; see `rebus.grammar.Grammar`. Raises RebusError, naming message and part, for an image
        without codes of this model's tokenizer and for a box."""
        form = CHATML if template == "chat" else PLAIN
        everything = loss == "all"
        writer = Writer(self.text)
        writer.template(form.begin, everything)
        for number, message in enumerate(document.messages, 1):
            learned = everything or message.role == "assistant"
            before, after = form.around(message.role)
            if number > 1:
                writer.template(form.between, everything)
            writer.template(before, everything)
            writer.cut()  # where a reply begins a word begins, as it will when the model writes it
            for index, part in enumerate(message.content, 1):
                self._part(writer, part, Place(number, index), learned)
            writer.cut()
            writer.template(after, learned)
        if reply is None:
            writer.template(form.end, everything or document.messages[-1].role == "assistant")
        else:
            writer.template(form.between + form.assistant[0], everything)
        return writer.finish()

    def _part(self, writer: Writer, part: Part, place: Place, learned: bool) -> None:
        if isinstance(part, str):
            writer.text(part, learned)
            return
        tokens = (part.generated or part.understood) if isinstance(part, Image) else None
        if not isinstance(tokens, Codes) or tokens.source != self.source:
            raise RebusError(
                f"Mosaic writes text and images with codes of {self.source!r}, but {place} is {type(part).__name__} with "
                f"{'none' if tokens is None else tokens.source!r}. Encode the document with this model's tokenizer."
            )
        words = [self.text.words + int(code) for code in tokens.ids_N]
        writer.words([self.special.begin_image, *words, self.special.end_image], learned)

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow: in an image, colours until every cell has one, then the closing mark."""
        inside = open_image(reply, self.special)
        if inside is not None:
            return self._colour if inside < self.cells else Force((self.special.end_image,))
        fits = left >= self.cells + 2
        if modality == "image":
            if self.special.end_image in reply:
                return Force((self.special.eos,))
            if not fits:
                raise RebusError(
                    f"Mosaic writes an image in {self.cells + 2} words, but only {left} are left for this reply. "
                    "Raise `max_new_tokens`."
                )
            return Force((self.special.begin_image,))
        return self._any if modality == "any" and fits else self._text

    def read(self, ids: list[int]) -> list[Part]:
        """Words of a reply → text and images with codes; what follows its end is not read."""
        parts: list[Part] = []
        if self.special.eos in ids:
            ids = ids[: ids.index(self.special.eos)]
        while ids:
            if ids[0] == self.special.begin_image:
                codes = torch.tensor(ids[1 : self.cells + 1]) - self.text.words
                parts.append(Image(generated=Codes(codes, self.source)))
                ids = ids[self.cells + 2 :]
                continue
            stop = ids.index(self.special.begin_image) if self.special.begin_image in ids else len(ids)
            parts.append(self.text.decode(ids[:stop]))
            ids = ids[stop:]
        return parts

    def unconditional(self) -> list[int]:
        """The word that begins a document."""
        return [self.special.pad]
