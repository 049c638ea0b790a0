"""SEED-X's language model in training: documents in, losses out, with the frozen tokenizer and the grammar between
(section 3.2).

    pictures to be read ──▶ views ──▶ way in ──▶ slots ┐
    words ─────────────────────────────────────────────┼─▶ language model ─▶ words: cross-entropy
    slots to be drawn ─────────────────────────────────┘                  └▶ way out: distance to the picture's features

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from rebus.data.source_batches import SourceBatch
from rebus.document import Document, Image, Shown, assistant, user
from rebus.errors import RebusError
from rebus.grammar import TemplateName
from rebus.lm import InterleavedLM, Losses
from rebus.nn.word_drawings import WordDrawings, words_of_wishes
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.memory import Memory
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.views import Grid
from rebus.sequence import Collated, collated
from rebus.sequence import Sequence as Words
from rebus.train import Trainable, parallel
from rebus.visual import Features, Purpose

TooLong = Literal["drop", "flip"]
Responses = Literal["learned", "unlearned"]
NORMS = ("lm.llm.base.*norm*",)
WORDS = "lm.input_projector.words.*"
"""What reads views as words, which is fitted to names before."""
SAID = "lm.output_projector.words.*"
"""What draws pictures from words, which is fitted to pictures before."""
TABLES = ("lm.llm.base.*embed_tokens*", "lm.llm.base.*lm_head*")
"""What else of a base is trained in full, beside its norms."""


class LanguageTraining(nn.Module):
    """The language model with its projectors, the frozen tokenizer, and the grammar that lays documents out.

    - `one_view`: share of pictures that are read whole although they would be cut (while training; evaluation cuts all).
    - `page_read`: share of an interleaved page's pictures that are read; the others are drawn.
    - `too_long`: a document that does not fit its source's longest is dropped, or a caption of it is read off the picture
      instead ("flip", as in the published loader, which does so in silence).
    - `responses`: whether words before a drawn picture are learned in sets of drawings (the published loader does not).
    - `remember`: pictures whose features are kept.
    """

    def __init__(
        self,
        lm: InterleavedLM,
        tokenizer: SeedXTokenizer,
        grammar: SeedXGrammar,
        *,
        template: TemplateName,
        pack: int | None = None,
        one_view: float = 0.0,
        page_read: float = 0.5,
        too_long: TooLong = "drop",
        responses: Responses = "learned",
        remember: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer.requires_grad_(False)
        self.grammar = grammar
        self.template: TemplateName = template
        self.pack, self.one_view, self.page_read = pack, one_view, page_read
        self.too_long, self.responses = too_long, responses
        self.memory = Memory(tokenizer, remember)
        self.generator = generator or torch.Generator().manual_seed(0)
        self.dropped = 0

    def prepare(self, batch: list[Document] | SourceBatch) -> Collated:
        """Images become features, documents become rows; of real sources at most as long as the source says. Raises
        RebusError where nothing is left of a batch."""
        if isinstance(batch, SourceBatch):
            rows = self.source_rows(batch)
        else:
            rows = [self.words(document) for document in self.prepared(batch)]
        return collated(
            rows,
            pack=self.pack,
            least=min(2, parallel.world_size()),
            pad_id=self.grammar.special.pad,
            device=self.lm.llm.device,
        )

    def forward(self, batch: list[Document] | SourceBatch | Collated) -> Losses:
        """The mean over all words that are learned, and that over all images that are drawn."""
        return self.lm.losses(batch if isinstance(batch, Collated) else self.prepare(batch))

    def words(self, document: Document) -> Words:
        """A prepared document's words; what follows the first message is learned, where there are several."""
        return self.grammar.serialize(document, template=self.template, loss="reply")

    # ------------------------------------------------------------------------------------------ images → features

    def prepared(self, documents: Sequence[Document], *, pages: bool = False) -> list[Document]:
        """The documents with features for what each image is there for: those of the last reply are drawn, all others
        read, also those that earlier replies drew, since this is how they will come back in a conversation. With `pages`,
        pictures of a reply are read or drawn by chance."""
        flat: list[tuple[int, Image, Purpose, tuple[Grid, ...]]] = []
        for number, document in enumerate(documents):
            replies = [at for at, message in enumerate(document.messages) if message.role == "assistant"]
            for at, message in enumerate(document.messages):
                for image in message.images:
                    drawn = bool(replies) and at == replies[-1] and not (pages and self._chance() < self.page_read)
                    whole = drawn or (self.training and self.one_view > 0 and self._chance() < self.one_view)
                    grids = () if whole else self.tokenizer.grids
                    flat.append((number, image, "generation" if drawn else "understanding", grids))
        done: dict[int, Image] = {}
        for purpose, grids in dict.fromkeys((purpose, grids) for _, _, purpose, grids in flat):
            places = [place for place, (_, _, p, g) in enumerate(flat) if (p, g) == (purpose, grids)]
            encoded = self.memory.encode([_bare(flat[place][1]) for place in places], purpose, grids)
            if purpose == "generation":
                encoded = [
                    self._said(image, flat[place][1].shows) for place, image in zip(places, encoded, strict=True)
                ]
            done |= dict(zip(places, encoded, strict=True))
        places_left = iter(range(len(flat)))
        return [document.map_images(lambda image, role: done[next(places_left)]) for document in documents]

    def _said(self, image: Image, shows: Shown | None) -> Image:
        """An image that is to be drawn, with the words that it is drawn from, where it is drawn from words and these are known."""
        words: WordDrawings | None = getattr(self.lm.output_projector, "words", None)
        if words is None or shows is None or not isinstance(image.generated, Features):
            return image
        (says_K,) = words_of_wishes(self.grammar.text, [shows.name], [shows.style], words.config.words)
        return replace(image, generated=replace(image.generated, says_K=says_K))

    def _chance(self) -> float:
        return float(torch.rand((), generator=self.generator))

    # ------------------------------------------------------------------------------------------ a user's sets

    def source_rows(self, batch: SourceBatch) -> list[Words]:
        """The rows of a source's documents; those that do not fit are dropped and counted, or flipped."""
        most, rows = batch.source.max_length, []
        for document in self.prepared(batch.documents, pages=batch.source.form == "interleaved"):
            row = fitted(self.words(document), most)
            if row is None and self.too_long == "flip" and (turned := flipped(document)) is not None:
                row = fitted(self.words(self.prepared([turned])[0]), most)
            if row is None:
                self.dropped += 1
                continue
            if self.responses == "unlearned" and batch.source.template == "draw" and row.output_spans:
                first = row.output_spans[0][0] - 1  # the mark that begins the image is learned
                row = replace(row, target=[False] * first + row.target[first:])
            rows.append(row)
        if not rows:
            raise RebusError(
                f"Not one of {len(batch.documents)} documents of {batch.source.name} fits into {most} words with its "
                "images. Raise the source's `max_length`, or cut images into fewer views."
            )
        return rows


def _bare(image: Image) -> Image:
    """The image without tokens, which its role in another document may have given it."""
    return image if image.pixels is None else Image(image.pixels)


def fitted(words: Words, most: int) -> Words | None:
    """The words cut to at most `most`, before an image that would not fit as a whole; None where an image that is to be
    drawn is lost, or nothing that is learned is left."""
    if len(words) <= most:
        return words if any(words.target) or words.output_spans else None
    stop = min([most, *(start - 1 for start, end in words.input_spans if end + 1 > most)])
    if any(end + 1 > stop for _, end in words.output_spans) or not any(words.target[:stop]):
        return None
    kept = [number for number, (_, end) in enumerate(words.input_spans) if end < stop]
    return Words(
        words.ids[:stop],
        words.target[:stop],
        [words.input_spans[number] for number in kept],
        words.output_spans,
        [words.inputs[number] for number in kept],
        words.outputs,
    )


def flipped(document: Document) -> Document | None:
    """A caption and its picture, turned into the picture and its caption; None for any other document."""
    match document.messages:
        case (asked, drawn) if asked.text and not asked.images and len(drawn.images) == 1 and not drawn.text:
            return Document((user(_bare(drawn.images[0])), assistant(asked.text)))
    return None


def trainable(
    lr: float,
    row_lr: float | None,
    in_full: Sequence[str],
    full_lr: float | None = None,
    fitted_rates: Sequence[Trainable] = (),
    way_in_lr: float | None = None,
    way_out_lr: float | None = None,
) -> list[Trainable]:
    """Adapters and projectors, rows of new words where they have a rate, and what else of the base is trained, at a rate
    of its own or at that of the adapters; so the ways in and out. `fitted_rates` are those of what was fitted before (`fitted_parts`)."""
    rows = [] if row_lr is None else [Trainable("lm.llm.rows.*", row_lr)]
    return [
        *rows,
        Trainable("lm.llm.*lora_*", lr),
        *fitted_rates,
        Trainable("lm.input_projector.*", lr if way_in_lr is None else way_in_lr),
        Trainable("lm.output_projector.*", lr if way_out_lr is None else way_out_lr),
        *(Trainable(pattern, lr if full_lr is None else full_lr) for pattern in in_full),
    ]


def fitted_parts(lm: InterleavedLM, lr: float) -> list[Trainable]:
    """What reads views as words and what draws from words, of those that there are: fitted before, to names and pictures."""
    parts = {WORDS: lm.input_projector, SAID: lm.output_projector}
    return [Trainable(pattern, lr) for pattern, way in parts.items() if getattr(way, "words", None) is not None]
