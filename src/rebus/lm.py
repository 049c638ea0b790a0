"""The one language model of the house: a causal LM with two projectors, each of which may be absent.

With neither projector it is SEED, with an input projector LaVIT, with both SEED-X.

Dimension key: B batch · L length · D language-model width · V vocabulary · T all slots or words of a batch · S slots
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.row_cache import RowCache
from rebus.nn.text_model import TextModel
from rebus.nn.word_drawings import WordDrawings
from rebus.nn.word_readings import WordReadings
from rebus.nn.written_codes import CodePositions
from rebus.sequence import Batch, Collated, Counts, Sequence, collate
from rebus.visual import Features, Patches


class InputProjector(Protocol):
    """Images understood as vectors → vectors of the language model's width, one for each slot."""

    def __call__(self, inputs: list[Features | Patches]) -> Tensor:
        """T x D, the slots of all inputs in order."""
        ...

    def dummy(self) -> list[Features | Patches]:
        """The least that it takes in: what it is run on where a batch in training holds no image."""
        ...


Seen = Features | Patches | None


class OutputProjector(Protocol):
    """Hidden states at an image's slots → the vectors that a detokenizer takes."""

    def __call__(self, hidden_SD: Tensor, seen: Seen = None) -> Features:
        """The image that the hidden states of its S slots say; `seen` is the last image that was read before it."""
        ...

    def loss(self, hidden_TD: Tensor, outputs: list[Features], seen: Sequenced[Seen] | None = None) -> Tensor:
        """How far the slots of all images are from their targets, a scalar; `seen` as above, of each image."""
        ...

    def dummy(self) -> tuple[Tensor, list[Features]]:
        """The least that `loss` takes: hidden states and targets for a batch in training that has none."""
        ...


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its terms, each a scalar tensor."""

    total: Tensor
    """what is differentiated: text + weight x image"""
    text: Tensor
    """next-token cross-entropy, mean over the supervised words"""
    image: Tensor | None
    """the output projector's regression loss; None where there is no image to regress"""


class InterleavedLM(nn.Module):
    """A causal language model that reads and writes words and, through its projectors, vectors of images.

    The projectors are modules of the two protocols above. `image_weight` weighs the regression loss (SEED-X: 6).
    """

    word_weights_V: Tensor | None

    def __init__(
        self,
        llm: TextModel,
        input_projector: nn.Module | None = None,
        output_projector: nn.Module | None = None,
        image_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.llm = llm
        self.input_projector = input_projector
        self.output_projector = output_projector
        for projector in (input_projector, output_projector):
            if isinstance(words := getattr(projector, "words", None), WordReadings | WordDrawings):
                words.look_up_in(llm)
        self.image_weight = image_weight
        self.register_buffer("word_weights_V", None, persistent=False)
        self.places: CodePositions | None = None

    def restrict_codes(self, places: CodePositions | None) -> None:
        """Codes then compete with those of their own place alone, which are all that the grammar lets the model choose from,
        and not with the whole vocabulary; None, as at first: with all words."""
        self.places = places

    def weigh_words(self, weights_V: Tensor | None) -> None:
        """How much each word of the vocabulary counts in the loss while training; None, as at first: all alike."""
        self.word_weights_V = weights_V

    def embed(self, batch: Batch) -> Tensor:
        """x_BLD: words looked up, and understood features written over their slots.

        Raises RebusError when the projector gives another number of vectors than there are slots.
        """
        x_BLD = self.llm.embed(batch.ids_BL)
        project = cast(InputProjector | None, self.input_projector)
        if not batch.inputs:
            if project is not None and self._must_run(self.input_projector):
                return x_BLD + project(project.dummy()).sum() * 0.0
            return x_BLD
        if project is None:
            raise RebusError(
                f"This language model reads images as words, but the batch holds {len(batch.inputs)} images as vectors. "
                "Serialize the documents with the grammar of this model."
            )
        vectors_TD = project(batch.inputs)
        slots = int(batch.input_BL.sum())
        if len(vectors_TD) != slots:
            raise RebusError(
                f"The images of this batch are {len(vectors_TD)} vectors, but the sequences have {slots} slots for them. "
                "Serialize the documents with the grammar that belongs to this input projector."
            )
        return x_BLD.masked_scatter(batch.input_BL[..., None], vectors_TD.to(x_BLD.dtype))

    def hidden(self, x_BLD: Tensor, batch: Batch) -> Tensor:
        """Hidden states of a batch after the final norm, B x L x D."""
        return self.llm.hidden(x_BLD, batch.positions_BL, batch.attend())

    def forward(self, batch: Batch, over: Counts | None = None) -> Losses:
        """The losses of a batch whose tensors lie on the model's device; divided by `over` where that is given, else by
        what the batch holds."""
        over = over or batch.counts
        hidden_BLD = self.hidden(self.embed(batch), batch)
        weights_V = self.word_weights_V if self.training else None
        text = next_token_loss(self.llm, hidden_BLD, batch, over.words, weights_V, self.places)
        image = self._regression(hidden_BLD, batch, over.images)
        total = text if image is None else text + self.image_weight * image
        return Losses(total, text, image if over.images else None)

    def _regression(self, hidden_BLD: Tensor, batch: Batch, images: float) -> Tensor | None:
        project = cast(OutputProjector | None, self.output_projector)
        if project is not None and batch.outputs:
            mean = project.loss(hidden_BLD[batch.output_BL], batch.outputs, batch.seen_before)
            return mean if images == len(batch.outputs) else mean * (len(batch.outputs) / images)
        if project is not None and self._must_run(self.output_projector):
            return project.loss(*project.dummy()) * 0.0
        return None

    def losses(self, rows: Collated) -> Losses:
        """The losses of rows, as if all their batches were one."""
        over = rows.over or rows.counts
        parts = [self(batch, over) for batch in rows.batches]
        if len(parts) == 1:
            return parts[0]
        images = [part.image for part in parts if part.image is not None]
        return Losses(
            torch.stack([part.total for part in parts]).sum(),
            torch.stack([part.text for part in parts]).sum(),
            torch.stack(images).sum() if images else None,
        )

    def _must_run(self, projector: nn.Module | None) -> bool:
        """Whether a projector runs, on a dummy and times zero, though the batch has nothing for it: when several processes
        train together, all must run what learns, in the same order, or those that have an image would wait for ever."""
        learns = projector is not None and any(p.requires_grad for p in projector.parameters())
        return learns and self.training and torch.is_grad_enabled()

    def read(self, x_BLD: Tensor, cache: RowCache, rows: list[int]) -> Tensor:
        """Hidden states of new vectors in some rows of a cache, B x L x D; the cache holds them afterwards."""
        cache.begin(rows, x_BLD.shape[1])
        device = x_BLD.device
        hidden_BLD = self.llm.hidden(x_BLD, cache.positions(device), cache.mask(device), cache)
        cache.end()
        return hidden_BLD

    def embed_one(self, sequence: Sequence) -> Tensor:
        """x_1LD of one sequence, on the model's device."""
        return self.embed(collate([sequence]).to(self.llm.device))


def next_token_loss(
    llm: TextModel,
    hidden_BLD: Tensor,
    batch: Batch,
    words: float | None = None,
    weights_V: Tensor | None = None,
    places: CodePositions | None = None,
) -> Tensor:
    """Cross-entropy, in float32, of the words marked as targets, each times its word's weight where such are given, divided
    by `words` (none: by how many there are); logits are computed only for these. Zero where a batch has none.
    """
    target_BL = batch.target_BL[:, 1:]
    lost_T = _lost(llm, hidden_BLD, batch.ids_BL, target_BL, places)
    if weights_V is not None:
        lost_T = lost_T * weights_V[batch.ids_BL[:, 1:][target_BL]]
    lost = lost_T.sum() / (words or max(1, len(lost_T)))
    if llm.codes is not None and torch.is_grad_enabled():
        lost = lost + llm.codes.unused()
    return lost


def _lost(
    llm: TextModel, hidden_BLD: Tensor, ids_BL: Tensor, target_BL: Tensor, places: CodePositions | None
) -> Tensor:
    """What each word marked in `target_BL`, those behind the first of each row, cost in nats, in their order. Codes that are chosen by what
    they add up to always compete with those of their own place."""
    codes = llm.codes if llm.codes is not None and llm.codes.draws is not None else None
    if codes is not None:
        places = codes.positions(llm.words)
    before_BLD, next_BL = hidden_BLD[:, :-1], ids_BL[:, 1:]
    if places is None:
        return F.cross_entropy(llm.logits(before_BLD[target_BL]).float(), next_BL[target_BL], reduction="none")
    code_BL = next_BL - llm.words - places.first
    coded_BL = (code_BL >= 0) & (code_BL < places.places * places.each)
    lost_BL = torch.zeros(next_BL.shape, device=next_BL.device)
    open_BL = target_BL & ~coded_BL
    if open_BL.any():
        logits_TV = llm.logits(before_BLD[open_BL]).float()
        lost_BL = lost_BL.masked_scatter(open_BL, F.cross_entropy(logits_TV, next_BL[open_BL], reduction="none"))
    closed_BL = target_BL & coded_BL
    if closed_BL.any():
        if codes is not None:
            logits_TK = codes.next_logits(before_BLD, ids_BL[:, :-1], closed_BL)
        else:
            last = places.first + places.places * places.each
            logits_TK = llm.new_logits(before_BLD[closed_BL])[:, places.first : last].float()
        code_T = code_BL[closed_BL]
        place_T, which_T = code_T // places.each, code_T % places.each
        each_T = torch.arange(len(place_T), device=place_T.device)
        own_TE = logits_TK.unflatten(1, (places.places, places.each))[each_T, place_T]
        lost_BL = lost_BL.masked_scatter(closed_BL, F.cross_entropy(own_TE, which_T, reduction="none"))
    return lost_BL[target_BL]


@torch.no_grad()
def log_likelihoods(lm: InterleavedLM, batch: Batch) -> Tensor:
    """Of each sequence of a batch, the summed log-probability of its target words: for choosing among given answers."""
    hidden_BLD = lm.hidden(lm.embed(batch), batch)
    target_BL = batch.target_BL[:, 1:]
    lost_T = _lost(lm.llm, hidden_BLD, batch.ids_BL, target_BL, lm.places)
    totals_N = torch.zeros(len(batch.places), device=lost_T.device)
    return totals_N.index_add(0, batch.documents_BL[:, 1:][target_BL], -lost_T)
