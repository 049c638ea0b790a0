"""SEED's spelling: an image is a mark, 32 words of the visual vocabulary, and a closing mark (SEED-LLaMA section 3.2).

The same words serve for reading and for writing an image, so that a past reply is read as it was written.

Dimension key: V vocabulary · N codes of an image
"""

from __future__ import annotations

import torch

from rebus.document import Box, Document, Image, Message, Part, Role
from rebus.errors import RebusError
from rebus.grammar import (
    Allow,
    Force,
    LossKind,
    Modality,
    Place,
    SpecialTokens,
    TemplateName,
    Writer,
    asks_for_image,
    open_image,
    special_id,
)
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.papers.seed.spelling import SeedGrammarConfig
from rebus.sequence import Sequence
from rebus.visual import Codes


class SeedGrammar:
    """Documents ↔ words for one variant. `source` is that of the tokenizer whose codes these words are."""

    def __init__(self, text: TextTokenizer, config: SeedGrammarConfig, source: str) -> None:
        self.text = text
        self.config = config
        self.source = source
        self.special = SpecialTokens(
            eos=special_id(text, config.eos),
            pad=special_id(text, config.pad),
            begin_image=config.begin_image,
            end_image=config.end_image,
            bos=None if config.bos is None else special_id(text, config.bos),
        )
        own = (config.first_code + config.codes - 1, config.begin_image, config.end_image)
        self.vocabulary = max(text.words, 1 + max(own))
        in_text_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        in_text_V[: text.words] = text.text_V
        in_text_V[self.special.eos] = True
        in_text_V[[config.begin_image, config.end_image]] = False
        in_text_V[config.first_code : config.first_code + config.codes] = False
        begins_V = in_text_V.clone()
        begins_V[config.begin_image] = True
        self._text, self._text_or_image = Allow(in_text_V), Allow(begins_V)
        places = range(config.per_image)
        self._codes = [self._allowed(n) for n in places] if config.per_query else [self._allowed(0)] * len(places)

    def codes_at(self, place: int) -> range:
        """The codes that may stand at a place of an image, 0 to the last of its codes."""
        if not self.config.per_query:
            return range(self.config.codes)
        own = self.config.codes // self.config.per_image
        return range(place * own, (place + 1) * own)

    def _allowed(self, place: int) -> Allow:
        codes = self.codes_at(place)
        mask_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        mask_V[self.config.first_code + codes.start : self.config.first_code + codes.stop] = True
        return Allow(mask_V)

    # ------------------------------------------------------------------------------------------ documents → words

    def serialize(
        self,
        document: Document,
        *,
        reply: Modality | None = None,
        template: TemplateName = "chat",
        loss: LossKind = "reply",
    ) -> Sequence:
        """Lay a document out; see `rebus.grammar.Grammar`. The paper's loss is on all words of the plain template and
        on the replies of the chat template. Raises RebusError, naming message and part, for an image without codes of
        this model's tokenizer, with another number of them, or with codes out of range."""
        form = self.config.chat if template == "chat" else self.config.plain
        everything = loss == "all" or (loss == "paper" and template == "plain")
        writer = Writer(self.text)
        writer.template(form.begin, everything)
        messages = document.messages
        for number, message in enumerate(messages, 1):
            is_reply = message.role == "assistant"
            learned = everything or is_reply
            before, after = form.around(message.role)
            following = messages[number : number + 1]
            if number > 1:
                writer.template(form.between, everything)
            writer.template(before, everything)
            if message.role == "user" and asks_for_image(following, reply):
                writer.template(form.draw, everything)
            if is_reply:
                if _captions(messages[number - 2 : number - 1], message.content[:1]):
                    writer.template(form.caption, everything)
                writer.cut()  # where a reply begins a word begins, as it will when the model writes it
            for index, part in enumerate(message.content, 1):
                self._part(writer, part, message.role, Place(number, index), learned)
            if is_reply:
                writer.cut()
            writer.template(after, learned)
        if reply is None:
            writer.template(form.end, everything or (bool(messages) and messages[-1].role == "assistant"))
        else:
            if messages:
                writer.template(form.between, everything)
            writer.template(form.assistant[0], everything)
            if reply == "text" and messages and messages[-1].images:
                writer.template(form.caption, everything)
        return writer.finish()

    def _part(self, writer: Writer, part: Part, role: Role, place: Place, learned: bool) -> None:
        match part:
            case str():
                writer.text(part, learned)
            case Image():
                writer.words([self.special.begin_image], learned)
                writer.words(self._code_words(part, role, place), learned)
                writer.words([self.special.end_image], learned)
            case Box():
                raise RebusError(
                    f"SEED has no words for boxes, but {place} is {part}. Write the region in words, or use SEED-X."
                )

    def _code_words(self, image: Image, role: Role, place: Place) -> list[int]:
        ordered = (image.generated, image.understood) if role == "assistant" else (image.understood, image.generated)
        tokens = next((t for t in ordered if t is not None), None)
        count, codes = self.config.per_image, self.config.codes
        if tokens is None:
            raise RebusError(
                f"SEED reads an image as {count} codes, but {place} has pixels only. "
                "Encode the document's images with the tokenizer first."
            )
        if not isinstance(tokens, Codes):
            raise RebusError(
                f"SEED reads an image as {count} codes, but {place} is {type(tokens).__name__} of {tokens.source}. "
                "Encode the image with SEED's tokenizer."
            )
        if tokens.source != self.source:
            raise RebusError(
                f"This model's words are codes of {self.source}, but {place} has codes of {tokens.source}. "
                "Encode the image again with this model's tokenizer, or load the model that fits the codes."
            )
        ids = [int(code) for code in tokens.ids_N.tolist()]
        if len(ids) != count:
            raise RebusError(
                f"SEED writes an image as {count} codes, but {place} has {len(ids)}. "
                "Encode it again with `rebus tokenize`, or check which tokenizer wrote these codes."
            )
        outside = [(at, code) for at, code in enumerate(ids) if code not in self.codes_at(at)]
        if outside:
            at, code = outside[0]
            own = self.codes_at(at) if 0 <= code < codes else range(codes)
            where = f" as number {at + 1}" if len(own) < codes else ""
            raise RebusError(
                f"SEED's codes here{where} are {own.start} to {own.stop - 1}, but {place} has {code}. "
                "Encode it again with `rebus tokenize`, or check which tokenizer wrote these codes."
            )
        return [self.config.first_code + code for code in ids]

    # ------------------------------------------------------------------------------------------ words → documents

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow; see `rebus.grammar.Grammar`. In an image: codes until there are 32, then the closing mark."""
        special, count = self.special, self.config.per_image
        inside = open_image(reply, special)
        if inside is not None:
            return self._codes[inside] if inside < count else Force((special.end_image,))
        fits = left >= count + 2
        if modality == "image":
            if special.end_image in reply:
                return Force((special.eos,))
            if not fits:
                raise RebusError(
                    f"SEED writes an image in {count + 2} words, but only {left} are left for this reply. "
                    "Raise `max_new_tokens`."
                )
            return Force((special.begin_image,))
        return self._text_or_image if modality == "any" and fits else self._text

    def read(self, ids: list[int]) -> list[Part]:
        """Words of a reply → text and images with codes. What follows the end of the reply is not read.

        Raises RebusError for an image that is cut off or holds anything but the right number of codes."""
        parts: list[Part] = []
        segment: list[int] = []

        def close() -> None:
            text = self.text.decode(segment)
            segment.clear()
            if text:
                parts.append(text)

        at = 0
        while at < len(ids) and ids[at] != self.special.eos:
            if ids[at] != self.special.begin_image:
                segment.append(ids[at])
                at += 1
                continue
            close()
            stop = at + 1 + self.config.per_image
            codes = [i - self.config.first_code for i in ids[at + 1 : stop]]
            whole = ids[stop : stop + 1] == [self.special.end_image]
            if not whole or not all(code in self.codes_at(n) for n, code in enumerate(codes)):
                raise RebusError(
                    f"SEED writes an image as {self.config.per_image} codes between two marks, but the image at word "
                    f"{at + 1} of the reply is not so. Generate with this grammar, which finishes every image."
                )
            parts.append(Image(generated=Codes(torch.tensor(codes), self.source)))
            at = stop + 1
        close()
        return parts

    def unconditional(self) -> list[int]:
        """The word that begins a document: SEED's own negative image follows it without a caption."""
        return [] if self.special.bos is None else [self.special.bos]


def _captions(before: tuple[Message, ...], first: tuple[Part, ...]) -> bool:
    """Is a reply that begins with `first` the caption of an image of the message before it?"""
    return bool(before) and bool(before[0].images) and bool(first) and isinstance(first[0], str)
