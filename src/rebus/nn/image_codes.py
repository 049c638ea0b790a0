"""What a language model knows of codes that add up to what they stand for: how their sums are read, and which one comes next.

Codes of a residual quantiser say a vector ever more exactly: the sum of an image's codes so far. With `reads` the last codes of an image are read
as words that the sum says (`rebus.nn.word_readings`). With `draws` the mark that begins an image says words, what these look like is the vector that
the image is to have (`rebus.nn.word_drawings`), and each code is the likelier, the nearer it brings the sum to it; every state may move the
vector further. A language model then need not learn from pictures by the thousand which codes belong to which name. (Ours; the papers: rows
of a vocabulary alone.)

Dimension key: B batch · L length · T places of a batch · I images · K words · V codes · C code width · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.nn.running_sums import SummedWords
from rebus.nn.text_model import TextModel
from rebus.nn.word_drawings import WordDrawings, WordDrawingsConfig
from rebus.nn.word_readings import WordReadings, WordReadingsConfig
from rebus.nn.written_codes import CodePositions


@dataclass(frozen=True)
class ImageCodesConfig:
    """Codes of which each place of an image has as many of its own, and the words around them."""

    first: int
    """Id of the first code; the others follow it, place by place."""
    begin: int
    """Id of the mark that begins an image."""
    codes: int = 2048
    """Number of codes."""
    places: int = 32
    """Codes of an image."""
    width: int = 512
    """Width of a code."""
    reads: WordReadingsConfig | None = None
    """How the last codes of an image are read as words; none: as the other codes are."""
    draws: WordDrawingsConfig | None = None
    """How an image is written from words; none: by the codes' output rows."""


class ImageCodes(nn.Module):
    """The codebook, shared with the tokenizer and not among the weights, and what is made of its sums."""

    codebook_VC: Tensor

    def __init__(self, config: ImageCodesConfig, width: int) -> None:
        super().__init__()
        self.config, self.each = config, config.codes // config.places
        self.summed = SummedWords(config.first, config.codes)
        self.register_buffer("codebook_VC", torch.zeros(config.codes, config.width), persistent=False)
        self.reads = None if config.reads is None else WordReadings(config.reads, config.width)
        self.draws = None if config.draws is None else WordDrawings(config.draws, width, 1, config.width)
        self.beside = nn.Linear(width, config.width) if self.draws is not None else None
        if self.beside is not None:
            nn.init.zeros_(self.beside.weight)
            nn.init.zeros_(self.beside.bias)
        self.sharpness = nn.Parameter(torch.tensor(-1.0)) if self.draws is not None else None

    @property
    def begin(self) -> int:
        """Id of the mark that begins an image."""
        return self.config.begin

    def positions(self, words: int) -> CodePositions:
        """Which words compete where the vocabulary had so many `words` before: those of one place."""
        return CodePositions(self.config.first - words, self.config.places, self.each)

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words are read and said."""
        for words in (self.reads, self.draws):
            if words is not None:
                words.look_up_in(llm)

    def sums(self, ids_BL: Tensor) -> Tensor:
        """The sum of each image's codes so far, x_BLC; zeros where there is no code."""
        code_BL = self.summed.among(ids_BL)
        which_BL = (ids_BL - self.config.first).clamp(0, self.config.codes - 1)
        x_BLC = F.embedding(which_BL, self.codebook_VC) * code_BL[..., None]
        return self.summed.sums(x_BLC, ids_BL)

    def read(self, x_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Vectors that are read, those of an image's last codes words that it says."""
        if self.reads is None:
            return x_BLD
        count = self.reads.config.words
        word_BL = (ids_BL - self.config.first) // self.each - (self.config.places - count)
        last_BL = self.summed.among(ids_BL) & (word_BL >= 0)
        if not last_BL.any():
            return x_BLD
        said_TKD = self.reads.read(self.sums(ids_BL)[last_BL][:, None])
        which_T = word_BL[last_BL]
        own_TD = said_TKD[torch.arange(len(which_T), device=which_T.device), which_T]
        return x_BLD.masked_scatter(last_BL[..., None], own_TD.to(x_BLD.dtype))

    def wanted(self, hidden_ID: Tensor, *, sharper: float = 1.0) -> Tensor:
        """The vectors that images are to have, by the states of the marks that begin them, [I, C]; `sharper` as `WordDrawings` takes
        it."""
        assert self.draws is not None
        return self.draws(hidden_ID, sharper=sharper)[:, 0]

    def logits(self, wanted_TC: Tensor, hidden_TD: Tensor, sum_TC: Tensor) -> Tensor:
        """What comes next in images that are to have these vectors, by the states before it and the sums so far: logits over all codes, [T, V]."""
        assert self.beside is not None and self.sharpness is not None
        left_TC = wanted_TC + self.beside(hidden_TD.to(self.beside.weight)) - sum_TC
        near_TV = left_TC @ self.codebook_VC.T - self.codebook_VC.square().sum(1) / 2
        return near_TV.float() * self.sharpness.exp()

    def following(self, wanted_C: Tensor, hidden_D: Tensor, written: Sequence[int]) -> tuple[int, Tensor]:
        """What comes next in an image that is drawn, behind the codes that are `written` of it: the first code, and the logits of all."""
        which_N = torch.tensor(written, dtype=torch.int64, device=wanted_C.device) - self.config.first
        so_far_1C = self.codebook_VC[which_N].float().sum(0, keepdim=True)
        return self.config.first, self.logits(wanted_C[None], hidden_D[None], so_far_1C)[0]

    def next_logits(self, hidden_BLD: Tensor, ids_BL: Tensor, where_BL: Tensor) -> Tensor:
        """The same behind some words of whole rows, [T, V]: each must stand within an image whose beginning is in the row."""
        begin_BL = ids_BL == self.config.begin
        wanted_IC = self.wanted(hidden_BLD[begin_BL])
        own_BL = begin_BL.flatten().cumsum(0).view_as(ids_BL) - 1
        return self.logits(wanted_IC[own_BL[where_BL]], hidden_BLD[where_BL], self.sums(ids_BL)[where_BL])

    def unused(self) -> Tensor:
        """Zero, made of everything that learns: where several processes train together, all must use the same parameters."""
        total = self.codebook_VC.new_zeros(())
        if self.reads is not None:
            total = total + self.reads.read(self.codebook_VC[:1, None]).float().sum() * 0.0
        if self.draws is not None:
            hidden_1D = self.codebook_VC.new_zeros(1, len(self.draws.middle_D))
            logits_1V = self.logits(self.wanted(hidden_1D), hidden_1D, self.codebook_VC[:1] * 0.0)
            total = total + logits_1V.sum() * 0.0
        return total
