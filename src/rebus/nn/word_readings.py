"""An image read as the first words of what it shows: vectors that lie where a language model's own word vectors lie.

A linear layer says, for each of a few words, which of the words that names are made of it is; what is read is the mean of their vectors
in the language model's table, weighted by how likely each is. A language model that is given words need not learn to read. Measured on
sixteen parts of the mini vision encoder's patches (6,492 trained pictures with moved copies, 1,413 names): after a fit of 1,300 steps, three
to five minutes on a processor core, all four words are right for 84 % of 4,000 trained pictures and 26 % of 144 others (rank 128; 84 and
27 % with 256), and the base language model with `seed:mini`'s adapters says the name after 45 steps of 24 pictures: 86 % of 160 trained
ones, 27 % of the others. By vectors that point to a whole name (`part_readings`) `lavit:mini` said 3 % of a batch after 30 steps of 32. (Ours.)

Dimension key: I images · S parts · C width · R rank · K words read · V words to choose from · X words of the language model ·
Q names · D word width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class WordFit:
    """How the layers are fitted to names."""

    steps: int = 1300
    """Steps of the optimiser."""
    batch: int = 384
    """Images of one step."""
    lr: float = 4e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled, of the layers."""
    dropped: float = 0.1
    """Share of an image's parts that are left out, anew each time."""
    smoothing: float = 0.02
    """Share of the aim that goes to all words alike."""


class WordReadings(nn.Module):
    """Parts of images x_ISC → x_IKD, as many vectors as words are read, each within the hull of the word vectors of the
    language model that it is given."""

    def __init__(self, parts: int, width: int, word_width: int, *, words: int = 4, rank: int = 128) -> None:
        super().__init__()
        self.down_SCR = nn.Parameter(torch.zeros(parts, width, rank))
        self.up_KRD = nn.Parameter(torch.zeros(words, rank, word_width))
        self.bias_KD = nn.Parameter(torch.zeros(words, word_width))
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def directions(self, x_ISC: Tensor) -> Tensor:
        """Where each word lies from the middle of all, of length 1, [I, K, D]."""
        low_IR = torch.einsum("isc,scr->ir", x_ISC.to(self.down_SCR), self.down_SCR)
        return F.normalize(torch.einsum("ir,krd->ikd", low_IR, self.up_KRD) + self.bias_KD, dim=-1)

    def logits(self, x_ISC: Tensor, table_VD: Tensor, middle_D: Tensor) -> Tensor:
        """How likely each word is, before the softmax: its cosine, sharpened."""
        away_VD = F.normalize((table_VD - middle_D).to(self.up_KRD), dim=-1)
        return self.directions(x_ISC) @ away_VD.T * self.sharpness.exp()

    def forward(self, x_ISC: Tensor, table_VD: Tensor, middle_D: Tensor) -> Tensor:
        """Mean word vectors; `middle_D` is the mean of the language model's whole table."""
        likely_IKV = self.logits(x_ISC, table_VD, middle_D).float().softmax(-1)
        return likely_IKV.to(table_VD.dtype) @ table_VD


def words_of_names(text: TextTokenizer, names: Sequence[str], words: int, *, filler: str = ".") -> Tensor:
    """The first words of each name as it stands within a sentence, [Q, K]; shorter names are filled up. Raises RebusError for a filler
    of several words."""
    filling = text.encode(filler)
    if len(filling) != 1:
        raise RebusError(
            f"What fills short names up must be one word, but {filler!r} is {len(filling)}. Give a single sign, such as '.'."
        )
    return torch.tensor([(text.encode(f" {name}") + filling * words)[:words] for name in names])


def fit_words(
    readings: WordReadings,
    x_ISC: Tensor,
    name_I: Tensor,
    words_QK: Tensor,
    table_XD: Tensor,
    *,
    fit: WordFit | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Fits the layers to images of which each has one of the names whose first words are `words_QK`, rows of the language model's
    table `table_XD`. Returns the rows that are chosen from, ids_V."""
    fit = fit or WordFit()
    ids_V, which_QK = words_QK.unique(return_inverse=True)
    table_XD = table_XD.detach().float()
    table_VD, middle_D = table_XD[ids_V], table_XD.mean(0)
    x_ISC = x_ISC.float()
    centre_SC, scale_SC = x_ISC.mean(0), x_ISC.std(0).clamp(min=1e-4)
    with torch.no_grad():
        readings.down_SCR.normal_(std=0.02, generator=generator)
        readings.up_KRD.normal_(std=0.05, generator=generator)
        readings.bias_KD.zero_()
        readings.sharpness.fill_(2.5)
    learning = list(readings.parameters())
    optimizer = torch.optim.AdamW(learning, weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps)
    with torch.enable_grad():
        for parameter in learning:
            parameter.requires_grad_(True)
        for _ in range(fit.steps):
            i = torch.randint(len(x_ISC), (min(fit.batch, len(x_ISC)),), generator=generator)
            # in units of their own, so that one rate suits every number
            seen_ISC = (x_ISC[i] - centre_SC) / scale_SC
            kept_IS1 = torch.rand(*seen_ISC.shape[:2], 1, generator=generator) >= fit.dropped
            logits_IKV = readings.logits(seen_ISC * kept_IS1 / (1 - fit.dropped), table_VD, middle_D)
            aim_IK = which_QK[name_I[i]]
            loss = F.cross_entropy(logits_IKV.flatten(0, 1), aim_IK.flatten(), label_smoothing=fit.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():  # from then on it reads vectors as they are
        readings.down_SCR.div_(scale_SC[..., None])
        shift_R = torch.einsum("sc,scr->r", centre_SC, readings.down_SCR)
        readings.bias_KD.sub_(torch.einsum("r,krd->kd", shift_R, readings.up_KRD))
    return ids_V
