"""LaVIT's spelling: an image is a mark, as many words as it needs, and a closing mark (section 3.2).

An image that is read goes in as vectors. Its own codes stand at their places, so that a loss may fall on them.

Dimension key: V vocabulary · N codes of an image
"""

from __future__ import annotations

import torch

from rebus.document import Box, Document, Image, Part, Role
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
from rebus.papers.lavit.spelling import LavitGrammarConfig
from rebus.sequence import Sequence
from rebus.visual import Codes, Patches, VisualTokens


class LavitGrammar:
    """Documents ↔ words for one variant. `source` is that of the tokenizer whose codes these words are."""

    def __init__(self, text: TextTokenizer, config: LavitGrammarConfig, source: str) -> None:
        if not 1 <= config.fewest <= config.most <= config.patches:
            raise RebusError(
                "An image is drawn in at least `fewest` and at most `most` codes, and has no more than patches, but these "
                f"are {config.fewest}, {config.most} and {config.patches}. Choose them in this order, from 1 up."
            )
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
        codes_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        codes_V[config.first_code : config.first_code + config.codes] = True
        in_text_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        in_text_V[: text.words] = text.text_V
        in_text_V[self.special.eos] = True
        in_text_V[codes_V] = False
        in_text_V[[config.begin_image, config.end_image]] = False
        begins_V, ends_V = in_text_V.clone(), codes_V.clone()
        begins_V[config.begin_image] = True
        ends_V[config.end_image] = True
        self._text, self._text_or_image = Allow(in_text_V), Allow(begins_V)
        self._codes, self._codes_or_end = (
            Allow(codes_V),
            Allow(ends_V, config.end_image if config.end == "first" else None),
        )

    # ------------------------------------------------------------------------------------------ documents → words

    def serialize(
        self,
        document: Document,
        *,
        reply: Modality | None = None,
        template: TemplateName = "chat",
        loss: LossKind = "reply",
    ) -> Sequence:
        """Lay a document out; see `rebus.grammar.Grammar`. The paper's loss is on all words of the plain template (see
        `visual_loss`) and on the replies of the chat template. Raises RebusError, naming message and part, for an image
        without tokens of this model's tokenizer, with none or too many of them, or with codes out of range."""
        form = self.config.chat if template == "chat" else self.config.plain
        question = self.config.question if template == "chat" else ("", "")
        everything = loss == "all" or (loss == "paper" and template == "plain")
        writer = Writer(self.text)
        writer.template(form.begin, everything)
        messages = document.messages
        for number, message in enumerate(messages, 1):
            is_reply = message.role == "assistant"
            learned = everything or is_reply
            before, after = form.around(message.role)
            if number > 1:
                writer.template(form.between, everything)
            writer.template(before, everything)
            wish = message.role == "user" and asks_for_image(messages[number : number + 1], reply)
            asks = message.role == "user" and not wish and bool(message.text)
            if is_reply:
                writer.cut()  # where a reply begins a word begins, as it will when the model writes it
            for index, part in enumerate(message.content, 1):
                if asks and isinstance(part, str) and not any(isinstance(p, str) for p in message.content[: index - 1]):
                    writer.template(question[0], learned)
                self._part(writer, part, message.role, Place(number, index), learned, wish)
            if asks:
                writer.template(question[1], learned)
            if is_reply:
                writer.cut()
            writer.template(after, learned)
        if reply is None:
            writer.template(form.end, everything or (bool(messages) and messages[-1].role == "assistant"))
        else:
            if messages:
                writer.template(form.between, everything)
            writer.template(form.assistant[0], everything)
        return writer.finish()

    def _part(self, writer: Writer, part: Part, role: Role, place: Place, learned: bool, wish: bool) -> None:
        match part:
            case str():
                writer.text(part, learned)
            case Image():
                self._image(writer, part, role, place, learned, wish)
            case Box():
                raise RebusError(
                    f"LaVIT has no words for boxes, but {place} is {part}. Write the region in words, or use SEED-X."
                )

    def _image(self, writer: Writer, image: Image, role: Role, place: Place, learned: bool, wish: bool) -> None:
        ordered = (image.generated, image.understood) if role == "assistant" else (image.understood, image.generated)
        tokens = next((t for t in ordered if t is not None), None)
        if wish and self.config.wish == "codes" and isinstance(image.generated, Codes):
            tokens = image.generated
        begin, end = [self.special.begin_image], [self.special.end_image]
        if isinstance(tokens, Codes):
            words = self._code_words(tokens, place)
            marks = not wish or self.config.wish_marks
            writer.words([*begin, *words, *end] if marks else words, learned)
            return
        patches = self._patches(tokens, place)
        kept, codes = int(patches.keep_N.sum()), image.generated
        # codes that were made with another choice of patches say nothing about these
        own = isinstance(codes, Codes) and codes.source == self.source and len(codes.ids_N) == kept
        words = self._code_words(codes, place) if own and isinstance(codes, Codes) else begin * kept
        writer.words(begin, learned)
        writer.inputs(words, patches, 1, learned and own and self.config.visual_loss)
        writer.words(end, learned and self.config.visual_loss)

    def _patches(self, tokens: VisualTokens | None, place: Place) -> Patches:
        if tokens is None:
            raise RebusError(
                f"LaVIT reads an image as vectors or codes, but {place} has pixels only. "
                "Encode the document's images with the tokenizer first."
            )
        if not isinstance(tokens, Patches):
            raise RebusError(
                f"LaVIT reads an image as patches or codes, but {place} is {type(tokens).__name__} of {tokens.source}. "
                "Encode the image with LaVIT's tokenizer."
            )
        self._same_source(tokens, place)
        count, kept = len(tokens.x_NC), int(tokens.keep_N.sum())
        if tokens.keep_N.shape != (count,) or count != self.config.patches or not kept:
            raise RebusError(
                f"LaVIT reads an image as {self.config.patches} patches of which some are kept, but {place} has {count} "
                f"patches and keeps {kept} of {len(tokens.keep_N)}. Encode it again with this model's tokenizer."
            )
        return tokens

    def _code_words(self, tokens: Codes, place: Place) -> list[int]:
        self._same_source(tokens, place)
        ids, size = [int(code) for code in tokens.ids_N.tolist()], self.config.codes
        if not 1 <= len(ids) <= self.config.patches:
            raise RebusError(
                f"LaVIT writes an image as 1 to {self.config.patches} codes, but {place} has {len(ids)}. "
                "Encode it again with `rebus tokenize`, or check which tokenizer wrote these codes."
            )
        outside = [code for code in ids if not 0 <= code < size]
        if outside:
            raise RebusError(
                f"LaVIT's codes here are 0 to {size - 1}, but {place} has {outside[0]}. "
                "Encode it again with `rebus tokenize`, or check which tokenizer wrote these codes."
            )
        return [self.config.first_code + code for code in ids]

    def _same_source(self, tokens: VisualTokens, place: Place) -> None:
        if tokens.source != self.source:
            raise RebusError(
                f"This model reads tokens of {self.source}, but {place} has tokens of {tokens.source}. "
                "Encode the image again with this model's tokenizer, or load the model that fits the tokens."
            )

    # ------------------------------------------------------------------------------------------ words → documents

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow; see `rebus.grammar.Grammar`. In an image: codes, from the fewest on the closing mark as well;
        the mark is forced after the most codes, and where the reply has no room for more."""
        special, fewest = self.special, self.config.fewest
        inside = open_image(reply, special)
        if inside is not None:
            if inside >= self.config.most or left <= 1:
                return Force((special.end_image,))
            return self._codes if inside < fewest else self._codes_or_end
        fits = left >= fewest + 2
        if modality == "image":
            if special.end_image in reply:
                return Force((special.eos,))
            if not fits:
                raise RebusError(
                    f"LaVIT writes an image in at least {fewest + 2} words, but only {left} are left for this reply. "
                    "Raise `max_new_tokens`."
                )
            return Force((special.begin_image,))
        return self._text_or_image if modality == "any" and fits else self._text

    def read(self, ids: list[int]) -> list[Part]:
        """Words of a reply → text and images with codes. What follows the end of the reply is not read.

        Raises RebusError for an image that is cut off, empty, or holds anything but codes."""
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
            ended = self.special.end_image in ids[at:]
            stop = ids.index(self.special.end_image, at) if ended else len(ids)
            codes = self.codes(ids[at + 1 : stop])
            if not ended or not codes or len(codes) != stop - at - 1:
                raise RebusError(
                    f"LaVIT writes an image as codes between two marks, but the image at word {at + 1} of the reply has "
                    f"{len(codes)} codes in {stop - at - 1} words{'' if ended else ' and no end'}. Generate with this "
                    "grammar, which finishes every image."
                )
            parts.append(Image(generated=Codes(torch.tensor(codes), self.source)))
            at = stop + 1
        close()
        return parts

    def codes(self, ids: list[int]) -> list[int]:
        """The codes among words, in order; whatever else stands there is passed over."""
        return [i - self.config.first_code for i in ids if 0 <= i - self.config.first_code < self.config.codes]

    def unconditional(self) -> list[int]:
        """Nothing: the guidance stream knows the image's own words alone, from its opening mark on (equation 7)."""
        return []
