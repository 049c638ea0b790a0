"""Codes of an image of which some patches are kept: what the image is to look like is said first, and the codes are read off it.

Where a language model says in words what an image is to show (`rebus.nn.word_drawings`), what these look like is, of every patch, how likely it is kept
and what its code is near to. The codes come in the order of the patches, so that an image is a hidden Markov model whose states are places: the first code is
that of some patch, each further one of some patch behind, and the image ends where no further one is kept. What comes next, given the codes so far, is then a sum over the
places where the last code may have been. (Ours; the paper: rows of a vocabulary alone.)

Dimension key: I images · P patches · L length · T codes of the longest image · N places of a batch · V codes · C code width · D language-model width
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
from rebus.nn.written_codes import CodePositions

LEAST = 0.02
"""A patch is kept, and is not kept, with at least this probability: what was fitted to pictures is never quite sure."""
FLOOR = 1e-4
"""Share of the probability that all words have alike, so that what the grammar forces upon an image is never impossible."""


@dataclass(frozen=True)
class PatchCodesConfig:
    """Codes of kept patches, and the words around them."""

    begin: int
    """Id of the mark that begins an image."""
    end: int
    """Id of the mark that ends it; the codes follow it."""
    codes: int = 2048
    """Number of codes."""
    patches: int = 64
    """Patches of an image."""
    width: int = 16
    """Width of a code."""
    surer: float = 4.0
    """How many times as sure it is taken to be, when an image is drawn, which patches are kept, of which as many stay likely as before, and which
    codes they have: what was fitted knows a mean of what may be meant."""
    draws: WordDrawingsConfig = WordDrawingsConfig(apart=32)
    """How words become patches."""


class PatchCodes(nn.Module):
    """The codebook, of unit vectors, shared with the tokenizer and not among the weights, and what is said of patches."""

    codebook_VC: Tensor

    def __init__(self, config: PatchCodesConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.summed = SummedWords(config.end + 1, config.codes)
        self.register_buffer("codebook_VC", torch.zeros(config.codes, config.width), persistent=False)
        self.draws = WordDrawings(config.draws, width, config.patches, 1 + config.width)
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    @property
    def begin(self) -> int:
        """Id of the mark that begins an image."""
        return self.config.begin

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words are said."""
        self.draws.look_up_in(llm)

    def read(self, x_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Vectors that are read: as they are."""
        return x_BLD

    def positions(self, words: int) -> CodePositions:
        """Which words compete where the vocabulary had so many `words` before: the mark that ends an image, and all codes."""
        return CodePositions(self.config.end - words, 1, 1 + self.config.codes)

    def aim(self, keep_IP: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """What the network is fitted to, [I, P, 1 + C]: of images whether each patch is kept, and where it is its code."""
        aim_IPX = torch.zeros(*keep_IP.shape, 1 + self.config.width)
        aim_IPX[..., 0] = keep_IP.float()
        aim_IPX[..., 1:][keep_IP] = 2 * self.codebook_VC[torch.cat(list(ids))]
        return aim_IPX

    def wanted(self, hidden_ID: Tensor, *, sharper: float = 1.0) -> Tensor:
        """What images are to look like, [I, P, 1 + C], by the states of the marks that begin them; `sharper` as `WordDrawings` takes it."""
        return self.draws(hidden_ID, sharper=sharper)

    def kept(self, wanted_IPX: Tensor, surer: float = 1.0) -> Tensor:
        """How likely each patch is kept, [I, P]. `surer` than 1: the likeliest, as many as before on the average, nearly surely."""
        keep_IP = wanted_IPX[..., 0].float().clamp(LEAST, 1 - LEAST)
        if surer == 1.0:
            return keep_IP
        count_I1 = keep_IP.sum(1, keepdim=True).round().long().clamp(1, keep_IP.shape[1] - 1)
        order_IP = keep_IP.sort(1, descending=True).values
        between_I1 = (order_IP.gather(1, count_I1 - 1) + order_IP.gather(1, count_I1)) / 2
        return ((keep_IP.logit() - between_I1.logit()) * surer).sigmoid().clamp(LEAST, 1 - LEAST)

    def emissions(self, wanted_IPX: Tensor, surer: float = 1.0) -> Tensor:
        """How likely each code is at each patch, if that is kept, [I, P, V]."""
        near_IPV = wanted_IPX[..., 1:].float() @ self.codebook_VC.T
        return (near_IPV * self.sharpness.exp() * surer).softmax(-1)

    def follow(self, wanted_IPX: Tensor, codes_IT: Tensor, surer: float = 1.0) -> Tensor:
        """Of images with these codes (−1: behind the last) what comes first and then behind each code: log-probabilities of the end and of every code,
        [I, T + 1, 1 + V]."""
        move_IQP = moves(self.kept(wanted_IPX, surer))
        code_IPV = self.emissions(wanted_IPX, surer)
        at_IQ = F.pad(torch.zeros_like(move_IQP[..., 0])[:, 1:], (1, 0), value=1.0)  # before the first patch
        said = []
        for codes_I in (*codes_IT.unbind(1), None):
            next_IP = torch.einsum("iq,iqp->ip", at_IQ, move_IQP)
            ends_I1 = (1 - next_IP.sum(1, keepdim=True)).clamp(min=0)
            come_IV = torch.einsum("ip,ipv->iv", next_IP, code_IPV)
            all_IV = torch.cat([ends_I1, come_IV], 1)
            said.append(((1 - FLOOR) * all_IV + FLOOR / all_IV.shape[1]).log())
            if codes_I is None:
                break
            own_IP = code_IPV.gather(2, codes_I.clamp(min=0)[:, None, None].expand(-1, code_IPV.shape[1], 1))[..., 0]
            at_IP = next_IP * own_IP + 1e-20
            at_IQ = F.pad(at_IP / at_IP.sum(1, keepdim=True), (1, 0))
        return torch.stack(said, 1)

    def following(self, wanted_PX: Tensor, hidden_D: Tensor, written: Sequence[int]) -> tuple[int, Tensor]:
        """What comes next in an image that is drawn, behind the words that are `written` of it: the first of the words that compete, and their logits."""
        first = self.config.end
        codes_1T = torch.tensor([written], dtype=torch.int64, device=wanted_PX.device).view(1, -1) - first - 1
        return first, self.follow(wanted_PX[None], codes_1T, self.config.surer)[0, -1]

    def next_logits(self, hidden_BLD: Tensor, ids_BL: Tensor, where_BL: Tensor) -> Tensor:
        """What comes next behind some words of whole rows, [N, 1 + V]: each must stand within an image whose beginning is in the row. It teaches how
        sharply codes are chosen, but not what is to be said: a chain of places has gradients that would drown all others."""
        row_I, begin_I = (ids_BL == self.config.begin).nonzero(as_tuple=True)
        wanted_IPX = self.wanted(hidden_BLD[row_I, begin_I]).detach()
        code_BL = self.summed.among(ids_BL)
        length = ids_BL.shape[1]
        places_L = torch.arange(length, device=ids_BL.device)
        # of each place the first behind it, or itself, that is no code
        stop_BL = torch.where(code_BL, length, places_L).flip(1).cummin(1).values.flip(1)
        stop_BL = F.pad(stop_BL, (0, 1), value=length)
        counts_I = stop_BL[row_I, begin_I + 1] - begin_I - 1
        longest = int(counts_I.max())
        places_IT = begin_I[:, None] + 1 + torch.arange(longest, device=ids_BL.device)
        codes_IT = ids_BL[row_I[:, None], places_IT.clamp(max=length - 1)] - self.config.end - 1
        codes_IT = codes_IT.masked_fill(torch.arange(longest, device=ids_BL.device) >= counts_I[:, None], -1)
        said_IUV = self.follow(wanted_IPX, codes_IT)
        own_BL = (ids_BL == self.config.begin).flatten().cumsum(0).view_as(ids_BL) - 1
        own_N = own_BL[where_BL]
        return said_IUV[own_N, where_BL.nonzero()[:, 1] - begin_I[own_N]]

    def unused(self) -> Tensor:
        """Zero, made of everything that learns: where several processes train together, all must use the same parameters."""
        wanted_1PX = self.wanted(self.codebook_VC.new_zeros(1, len(self.draws.middle_D)))
        return self.emissions(wanted_1PX).sum() * 0.0


def moves(keep_IP: Tensor) -> Tensor:
    """How likely each patch is the next that is kept, [I, 1 + P, P]: from before the first, and from each patch."""
    patches = keep_IP.shape[1]
    # log-probability that none of the patches before each is kept, and none of all
    skip_IQ = F.pad((1 - keep_IP).log().cumsum(1), (1, 0))
    between_IQP = keep_IP.log()[:, None] + skip_IQ[:, None, :-1] - skip_IQ[..., None]
    behind_QP = torch.ones(1 + patches, patches, dtype=torch.bool, device=keep_IP.device).triu()
    return between_IQP.masked_fill(~behind_QP, -torch.inf).exp()
