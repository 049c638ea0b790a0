"""SEED-X's spelling (section 3.2): an image that is read is a group of slots for each of its views, one that is drawn a
group of slots whose hidden states say it; a box is four words.

The slots' own words say nothing: vectors are written over those that are read, and those that are drawn are the same for
every image, so that all of them can be taken in one pass.

Dimension key: V vocabulary · W views of one image · N vectors of a view · S slots · C visual width
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
from rebus.papers.seed_x.boxes import PER_BOX, box_words, read_box
from rebus.papers.seed_x.spelling import SeedXGrammarConfig
from rebus.sequence import Sequence
from rebus.visual import Features, VisualTokens


class SeedXGrammar:
    """Documents ↔ words for one variant. `source` is that of the tokenizer whose features are read."""

    def __init__(self, text: TextTokenizer, config: SeedXGrammarConfig, source: str) -> None:
        self.text = text
        self.config = config
        self.source = source
        free = config.replies == "free"
        self.special = SpecialTokens(
            eos=special_id(text, config.eos),
            pad=special_id(text, config.pad),
            begin_image=config.begin_image,
            end_image=config.end_image,
            bos=None if config.bos is None else special_id(text, config.bos),
            spans=() if free else ((config.begin_box, config.end_box),),
        )
        own = (config.first_location + config.locations - 1, config.end_patch, config.end_box, config.end_image)
        self.vocabulary = max(text.words, 1 + max(*own, *config.slot_words))
        places_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        places_V[config.first_location : config.first_location + config.locations] = True
        text_V = torch.zeros(self.vocabulary, dtype=torch.bool)
        text_V[: text.words] = text.text_V
        text_V[self.special.eos] = True
        text_V[min(config.first_slot, config.begin_image) :] = False
        if free:
            text_V[:] = True
            text_V[[*config.slot_words, config.begin_image, config.end_image]] = False
        self._places = Allow(places_V)
        self._text = {
            (image, box): Allow(self._with(text_V, image, box)) for image in (False, True) for box in (False, True)
        }

    def _with(self, text_V: torch.Tensor, image: bool, box: bool) -> torch.Tensor:
        """Words of text, with the mark that begins an image and that which begins a box where these may follow."""
        mask_V = text_V.clone()
        mask_V[self.config.begin_image] = image
        if self.config.replies == "whole":
            mask_V[self.config.begin_box] = box
        return mask_V

    # ------------------------------------------------------------------------------------------ documents → words

    def serialize(
        self,
        document: Document,
        *,
        reply: Modality | None = None,
        template: TemplateName = "chat",
        loss: LossKind = "reply",
    ) -> Sequence:
        """Lay a document out; see `rebus.grammar.Grammar`. Of an image that is drawn only the opening mark is learned as
        a word (its slots are regressed), of one that is read nothing; the paper's loss is that on the replies.

        An image of a reply is one to be drawn where the document is whole and the image has features to be drawn by;
        past images, those of a document whose reply is open, are read. Raises RebusError, naming message and part, for
        an image without features of this model's tokenizer, and for a document longer than the model's context.
        """
        form = self.config.chat if template == "chat" else self.config.plain
        everything = loss == "all"
        writer = Writer(self.text)
        writer.template(form.begin, everything)
        messages = document.messages
        for number, message in enumerate(messages, 1):
            is_reply = message.role == "assistant"
            learned = everything or is_reply
            before, after = form.around(message.role)
            if number > 1 and messages[number - 2].role == "assistant":
                writer.template(form.between, everything)
            writer.template(before, everything)
            wish = message.role == "user" and asks_for_image(messages[number : number + 1], reply)
            if wish and not message.images:
                writer.template(form.draw, everything)
            if is_reply:
                writer.cut()  # where a reply begins a word begins, as it will when the model writes it
            for index, part in enumerate(message.content, 1):
                self._part(writer, part, message.role, Place(number, index), learned, past=reply is not None)
            if is_reply:
                writer.cut()
            writer.template(after, learned)
        replied = bool(messages) and messages[-1].role == "assistant"
        if reply is None:
            writer.template(form.end, everything or replied)
        else:
            if replied:
                writer.template(form.between, everything)
            writer.template(form.assistant[0], everything)
        return self._fitting(writer.finish(), document)

    def _fitting(self, sequence: Sequence, document: Document) -> Sequence:
        if len(sequence) > self.config.context:
            views = len(sequence.input_spans)
            raise RebusError(
                f"The document is {len(sequence):,} words, {views * (self.config.slots + 2):,} of them for {views} views "
                f"of {len(document.images)} images, but this model reads {self.config.context:,}. Give fewer images, cut "
                "them into fewer views (the tokenizer's `grids`), or drop the document's first turns."
            )
        return sequence

    def _part(self, writer: Writer, part: Part, role: Role, place: Place, learned: bool, past: bool) -> None:
        match part:
            case str():
                writer.text(part, learned)
            case Box():
                writer.words(box_words(part, self.config), learned)
            case Image():
                if role == "assistant" and part.generated is not None and not (past and part.understood is not None):
                    self._drawn(writer, part.generated, place, learned, past)
                else:
                    self._read(writer, part.understood, place)

    def _drawn(self, writer: Writer, tokens: VisualTokens, place: Place, learned: bool, past: bool) -> None:
        target = self._features(tokens, place)
        if past:
            raise RebusError(
                f"SEED-X reads a picture that it has drawn from its pixels, but {place} has only the features that it "
                "was drawn by. Encode the document's images with the tokenizer first."
            )
        if target.x_WNC.shape[:2] != (1, self.config.slots):
            raise RebusError(
                f"SEED-X draws an image from {self.config.slots} vectors, but {place} is {list(target.x_WNC.shape[:2])} "
                "views and vectors. Encode it again with this model's tokenizer."
            )
        writer.words([self.special.begin_image], learned)
        writer.outputs(self.config.slot_words, target, False)
        writer.words([self.special.end_image], False)

    def _read(self, writer: Writer, tokens: VisualTokens | None, place: Place) -> None:
        if tokens is None:
            raise RebusError(
                f"SEED-X reads an image as vectors of its views, but {place} has none. "
                "Encode the document's images with the tokenizer first."
            )
        features = self._features(tokens, place)
        x_WNC, position_W2 = features.x_WNC, features.position_W2
        placed = position_W2 is None or position_W2.shape == (len(x_WNC), 2)
        if x_WNC.ndim != 3 or not len(x_WNC) or x_WNC.shape[1] != self.config.vectors or not placed:
            where = None if position_W2 is None else list(position_W2.shape)
            raise RebusError(
                f"SEED-X reads an image as views of {self.config.vectors} vectors and a place for each view, but {place} "
                f"is {list(x_WNC.shape)} with places {where}. Encode it again with this model's tokenizer."
            )
        config, tiles = self.config, len(x_WNC) - 1
        for view in range(tiles + 1):
            begin, end = (
                (config.begin_patch, config.end_patch) if view < tiles else (config.begin_image, config.end_image)
            )
            writer.words([begin], False)
            writer.inputs(config.slot_words, _view(features, view), 1, False)
            writer.words([end], False)

    def _features(self, tokens: VisualTokens, place: Place) -> Features:
        if not isinstance(tokens, Features):
            raise RebusError(
                f"SEED-X reads and draws images as features, but {place} is {type(tokens).__name__} of {tokens.source}. "
                "Encode the image with SEED-X's tokenizer."
            )
        if tokens.source != self.source:
            raise RebusError(
                f"This model reads features of {self.source}, but {place} has features of {tokens.source}. "
                "Encode the image again with this model's tokenizer, or load the model that fits the features."
            )
        return tokens

    # ------------------------------------------------------------------------------------------ words → documents

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow; see `rebus.grammar.Grammar`. An image is one forced run: all of its slots and the closing
        mark, with the opening mark where the reply is to be an image. In a box locations, until there are four."""
        config, special = self.config, self.special
        inside = open_image(reply, special)
        if inside is not None:
            return Force((*config.slot_words[inside:], config.end_image)[:left])
        words = config.slots + 2
        if modality == "image" and config.begin_image not in reply:
            if left < words:
                raise RebusError(
                    f"SEED-X writes an image in {words} words, but only {left} are left for this reply. "
                    "Raise `max_new_tokens`."
                )
            return Force((config.begin_image, *config.slot_words, config.end_image))
        if modality == "image":
            return Force((special.eos,))
        if config.replies == "free":
            return self._text[modality == "any", True]
        places = _open_box(reply, config)
        if places is not None:
            return self._places if places < PER_BOX else Force((config.end_box,))
        return self._text[modality == "any" and left >= words, left >= PER_BOX + 2]

    def read(self, ids: list[int]) -> list[Part]:
        """Words of a reply → text, boxes and images. What follows the end of the reply is not read. The words of an image
        say only that there is one: its features have no width here, the hidden states at its slots hold them.

        Raises RebusError for an image that is cut off, and for a box that has not exactly four locations.
        """
        parts: list[Part] = []
        segment: list[int] = []
        config = self.config

        def close() -> None:
            text = self.text.decode(segment)
            segment.clear()
            if text:
                parts.append(text)

        at = 0
        while at < len(ids) and ids[at] != self.special.eos:
            ending = {config.begin_image: config.end_image, config.begin_box: config.end_box}.get(ids[at])
            if ending is None:
                segment.append(ids[at])
                at += 1
                continue
            close()
            stop = ids.index(ending, at) + 1 if ending in ids[at:] else len(ids)
            group = ids[at:stop]
            if ids[at] == config.begin_box:
                parts.append(read_box(group, config))
            elif group != [config.begin_image, *config.slot_words, config.end_image]:
                raise RebusError(
                    f"SEED-X writes an image as {config.slots} slots between two marks, but the image at word {at + 1} of "
                    f"the reply is {len(group)} words that are not so. Generate with this grammar, which finishes every "
                    "image."
                )
            else:
                parts.append(Image(generated=Features(torch.zeros(1, config.slots, 0), self.source)))
            at = stop
        close()
        return parts

    def unconditional(self) -> list[int]:
        """The word that begins a document. Nothing is chosen among within an image, so guidance changes none."""
        return [] if self.special.bos is None else [self.special.bos]


def _view(features: Features, view: int) -> Features:
    """One view of an image."""
    position_W2 = None if features.position_W2 is None else features.position_W2[view : view + 1]
    return Features(features.x_WNC[view : view + 1], features.source, position_W2)


def _open_box(reply: list[int], config: SeedXGrammarConfig) -> int | None:
    """Locations of the box that is being written, or None outside boxes."""
    for back, word in enumerate(reversed(reply[-PER_BOX - 1 :])):
        if word == config.begin_box:
            return back
        if not config.first_location <= word < config.first_location + config.locations:
            return None
    return None
