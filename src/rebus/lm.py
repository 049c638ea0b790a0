"""The one language model of the house: a causal LM with two projectors, each of which may be absent.

With neither projector it is SEED, with an input projector LaVIT, with both SEED-X.

Dimension key: B batch · L length · D language-model width · V vocabulary · T all slots or words of a batch · S slots
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.row_cache import RowCache
from rebus.nn.text_model import TextModel
from rebus.sequence import Batch, Sequence, by_length, collate
from rebus.visual import Features, Patches


class InputProjector(Protocol):
    """Images understood as vectors → vectors of the language model's width, one for each slot."""

    def __call__(self, inputs: list[Features | Patches]) -> Tensor:
        """T x D, the slots of all inputs in order."""
        ...


class OutputProjector(Protocol):
    """Hidden states at an image's slots → the vectors that a detokenizer takes."""

    def __call__(self, hidden_SD: Tensor) -> Features:
        """The image that the hidden states of its S slots say."""
        ...

    def loss(self, hidden_TD: Tensor, outputs: list[Features]) -> Tensor:
        """How far the slots of all images are from their targets, a scalar."""
        ...


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its terms, each a scalar tensor."""

    total: Tensor
    """what is differentiated: text + weight x image"""
    text: Tensor
    """next-token cross-entropy, mean over the supervised words"""
    image: Tensor | None
    """the output projector's regression loss; None where the batch has no image to regress"""


class InterleavedLM(nn.Module):
    """A causal language model that reads and writes words and, through its projectors, vectors of images.

    The projectors are modules of the two protocols above. `image_weight` weighs the regression loss (SEED-X: 6).
    """

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
        self.image_weight = image_weight

    def embed(self, batch: Batch) -> Tensor:
        """x_BLD: words looked up, and understood features written over their slots.

        Raises RebusError when the projector gives another number of vectors than there are slots.
        """
        x_BLD = self.llm.embed(batch.ids_BL)
        if not batch.inputs:
            return x_BLD
        if self.input_projector is None:
            raise RebusError(
                f"This language model reads images as words, but the batch holds {len(batch.inputs)} images as vectors. "
                "Serialize the documents with the grammar of this model."
            )
        vectors_TD = self.input_projector(batch.inputs)
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

    def forward(self, batch: Batch) -> Losses:
        """The losses of a batch whose tensors lie on the model's device."""
        hidden_BLD = self.hidden(self.embed(batch), batch)
        text = next_token_loss(self.llm, hidden_BLD, batch)
        if not batch.outputs or self.output_projector is None:
            return Losses(text, text, None)
        image = self.output_projector.loss(hidden_BLD[batch.output_BL], batch.outputs)  # type: ignore[operator]
        return Losses(text + self.image_weight * image, text, image)

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


def next_token_loss(llm: TextModel, hidden_BLD: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy, in float32, over the words marked as targets; logits are computed only for these.

    Zero where a batch has none.
    """
    target_BL = batch.target_BL[:, 1:]
    logits_TV = llm.logits(hidden_BLD[:, :-1][target_BL])
    if not len(logits_TV):
        return hidden_BLD.sum() * 0.0
    return F.cross_entropy(logits_TV.float(), batch.ids_BL[:, 1:][target_BL])


def losses_over(lm: InterleavedLM, sequences: Many[Sequence], *, pack: int | None, pad_id: int) -> Losses:
    """The losses of sequences, as they are trained on: without `pack` a row for each; with it those of at most that many
    words share rows of that length, and longer ones rows as long as the longest (`by_length`). Packing changes what is
    computed and not what is found: the mean is over all words that are learned, whichever row they stand in."""
    groups = [(list(sequences), None)] if pack is None else by_length(list(sequences), pack)
    batches = [collate(some, pack=row, pad_id=pad_id).to(lm.llm.device) for some, row in groups]
    if len(batches) == 1:
        return lm(batches[0])
    found = [lm(batch) for batch in batches]
    text = _mean([losses.text for losses in found], [int(batch.target_BL[:, 1:].sum()) for batch in batches])
    drawn = [(losses.image, int(b.output_BL.sum())) for losses, b in zip(found, batches, strict=True)]
    some = [(image, slots) for image, slots in drawn if image is not None]
    if not some:
        return Losses(text, text, None)
    image = _mean([image for image, _ in some], [slots for _, slots in some])
    return Losses(text + lm.image_weight * image, text, image)


def _mean(values: Many[Tensor], counts: Many[int]) -> Tensor:
    """The mean of means over `counts` things each."""
    return torch.stack([count * value for count, value in zip(counts, values, strict=True)]).sum() / max(1, sum(counts))


@torch.no_grad()
def log_likelihoods(lm: InterleavedLM, batch: Batch) -> Tensor:
    """Of each sequence of a batch, the summed log-probability of its target words: for choosing among given answers."""
    hidden_BLD = lm.hidden(lm.embed(batch), batch)
    target_BL = batch.target_BL[:, 1:]
    logits_TV = lm.llm.logits(hidden_BLD[:, :-1][target_BL])
    lost_T = F.cross_entropy(logits_TV.float(), batch.ids_BL[:, 1:][target_BL], reduction="none")
    totals_N = torch.zeros(len(batch.places), device=lost_T.device)
    return totals_N.index_add(0, batch.documents_BL[:, 1:][target_BL], -lost_T)
