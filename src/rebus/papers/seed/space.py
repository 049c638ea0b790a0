"""The space in which SEED's images meet texts: stage 1's projections, kept for retrieval (2307.08041 section 3.1).

Dimension key: I images or texts · N queries · C width · T width of a sentence vector
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.mini.sentences import sentence_vectors
from rebus.papers.seed.losses import ContrastiveHeads


class SentenceSpace(ContrastiveHeads):
    """The projections where texts are frozen sentence vectors, as in the mini family, and not states of a text encoder that
    learns along."""

    def __init__(
        self,
        width: int,
        out: int,
        *,
        text_width: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(width, out, generator=generator)
        self.text_proj = nn.Linear(text_width, out)

    def sentences(self, text_IT: Tensor) -> Tensor:
        """Sentence vectors → unit vectors_IC."""
        return F.normalize(self.text_proj(text_IT), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit vectors_IC; what makes sentence vectors is fetched the first time."""
        return self.sentences(torch.from_numpy(sentence_vectors(texts)).to(self.text_proj.weight))
