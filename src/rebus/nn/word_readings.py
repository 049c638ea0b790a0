"""An image read as the first words of what it shows: vectors that lie where a language model's own word vectors lie.

A linear layer of an image's parts says, for each of a few words, which of the words that names are made of it is; what is read is the mean of
their vectors in the language model's table, weighted by how likely each is. A language model that is given words need not learn to read.

One linear layer for all parts and a mean over them would say only what parts say on the average, wherever they lie: of the mini vision
encoder's patches a ridge regression of the mean names 54 % of 13,000 trained pictures and 8 % of 144 others, of sixteen parts side by side 99
and 38 %. Of such parts all four words are right for 84 % of 4,000 trained pictures and 26 % of the others (6,492 trained pictures
with moved copies, 1,413 names, rank 128; a fit of three to five minutes on a processor core). (Ours; in the papers a language model of 13
billion weights puts parts together.)

Dimension key: V views · I images · N vectors of a view or image, a square grid · T kept vectors of all images · S parts, a square
grid · C width · R rank · K words read · W words to choose from · X words of the language model · Q names · D word width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class WordReadingsConfig:
    """How images are read as words."""

    grid: int = 4
    """Side of the grid of parts."""
    words: int = 4
    """Words that are read; they take the place of an image's last vectors."""
    rank: int = 128
    """Numbers between parts and words."""
    choices: int = 2048
    """Most words that can be chosen from."""


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
    """Parts of images → words of the language model that it was told to `look_up_in`: each read vector is a mean of word vectors."""

    ids_W: Tensor
    middle_D: Tensor
    centre_SC: Tensor
    scale_SC: Tensor

    def __init__(self, config: WordReadingsConfig, width: int, word_width: int) -> None:
        super().__init__()
        self.config = config
        parts, rank = config.grid**2, config.rank
        self.down_SCR = nn.Parameter(torch.zeros(parts, width, rank))
        self.up_KRD = nn.Parameter(torch.zeros(config.words, rank, word_width))
        self.bias_KD = nn.Parameter(torch.zeros(config.words, word_width))
        self.sharpness = nn.Parameter(torch.tensor(2.5))
        # the words that are chosen from, -1 where there are fewer, and the mean of the language model's whole table; before
        # a fit there is one word to choose from
        self.register_buffer("ids_W", F.pad(torch.zeros(1, dtype=torch.int64), (0, config.choices - 1), value=-1))
        self.register_buffer("middle_D", torch.zeros(word_width))
        # each number of a part is read in units of its own
        self.register_buffer("centre_SC", torch.zeros(parts, width))
        self.register_buffer("scale_SC", torch.ones(parts, width))
        self._words_of: tuple[TextModel, ...] = ()

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words they are. It is no part of this module, whose weights hold ids alone."""
        self._words_of = (llm,)

    def table(self) -> Tensor:
        """The vectors of the words that are chosen from, [W, D]. Raises RebusError where nobody said whose words they are."""
        if not self._words_of:
            raise RebusError(
                "An image was to be read as words, but of no language model. Give the projector to an InterleavedLM, or call "
                "`look_up_in`."
            )
        return self._words_of[0].embed(self.ids_W[self.ids_W >= 0][None])[0]

    def read(self, x_ISC: Tensor) -> Tensor:
        """Means of word vectors, [I, K, D]."""
        table_WD = self.table()
        return self.logits(x_ISC, table_WD).softmax(-1).to(table_WD.dtype) @ table_WD

    def logits(self, x_ISC: Tensor, table_WD: Tensor) -> Tensor:
        """How likely each word is, [I, K, W], before the softmax: the cosine with it, seen from the middle of all words, sharpened."""
        return self._logits((x_ISC.to(self.down_SCR) - self.centre_SC) / self.scale_SC, table_WD)

    def _logits(self, x_ISC: Tensor, table_WD: Tensor) -> Tensor:
        low_IR = torch.einsum("isc,scr->ir", x_ISC, self.down_SCR)
        said_IKD = F.normalize(torch.einsum("ir,krd->ikd", low_IR, self.up_KRD) + self.bias_KD, dim=-1)
        away_WD = F.normalize(table_WD.to(self.middle_D) - self.middle_D, dim=-1)
        return said_IKD @ away_WD.T * self.sharpness.exp()

    def forward(self, x_VND: Tensor, from_VNC: Tensor) -> Tensor:
        """Vectors that were read of views, with words in the place of each view's last ones; `from_VNC` are the square grids of vectors
        that words are read of."""
        said_VKD = self.read(parts(from_VNC, self.config.grid))
        count = min(x_VND.shape[1], self.config.words)
        return torch.cat([x_VND[:, : x_VND.shape[1] - count], said_VKD[:, :count].to(x_VND.dtype)], dim=1)

    def kept(self, x_TD: Tensor, from_TC: Tensor, keep_IN: Tensor) -> Tensor:
        """The same for images of which some vectors are kept, these end to end; an image of which fewer are kept than words are read has
        the first words alone."""
        said_IKD = self.read(kept_parts(from_TC, keep_IN, self.config.grid))
        lengths_I = keep_IN.sum(1)
        image_T = torch.arange(len(keep_IN), device=keep_IN.device).repeat_interleave(lengths_I)
        left_T = lengths_I.cumsum(0)[image_T] - torch.arange(
            len(x_TD), device=x_TD.device
        )  # 1 for an image's last vector
        there_T = lengths_I.clamp(max=self.config.words)[image_T]
        which_T = (there_T - left_T).clamp(min=0)
        return torch.where((left_T <= there_T)[:, None], said_IKD[image_T, which_T].to(x_TD.dtype), x_TD)

    @torch.no_grad()
    def fit(
        self,
        x_ISC: Tensor,
        name_I: Tensor,
        words_QK: Tensor,
        *,
        fit: WordFit | None = None,
        generator: torch.Generator,
    ) -> None:
        """Fits the layers to images of which each has one of the names, whose first words are `words_QK`. Raises RebusError for more
        words than can be chosen from, and as `table` does."""
        fit = fit or WordFit()
        ids_W, which_QK = words_QK.unique(return_inverse=True)
        if len(ids_W) > self.config.choices:
            raise RebusError(
                f"The names begin with {len(ids_W)} words, but images are read as one of at most {self.config.choices}. Raise "
                "`choices`."
            )
        self.ids_W.fill_(-1)[: len(ids_W)] = ids_W.to(self.ids_W.device)
        table_WD, x_ISC = self.table().float(), x_ISC.to(self.down_SCR)
        self.middle_D.copy_(self._words_of[0].base.get_input_embeddings().weight.float().mean(0))
        self.centre_SC.copy_(x_ISC.mean(0))
        self.scale_SC.copy_(x_ISC.std(0).clamp(min=1e-4))
        self.down_SCR.copy_(torch.randn(self.down_SCR.shape, generator=generator) * 0.02)
        self.up_KRD.copy_(torch.randn(self.up_KRD.shape, generator=generator) * 0.05)
        self.bias_KD.zero_()
        self.sharpness.fill_(2.5)
        learning = [self.down_SCR, self.up_KRD, self.bias_KD, self.sharpness]
        optimizer = torch.optim.AdamW(learning, weight_decay=fit.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps)
        with torch.enable_grad():
            for parameter in learning:
                parameter.requires_grad_(True)
            for _ in range(fit.steps):
                i = torch.randint(len(x_ISC), (min(fit.batch, len(x_ISC)),), generator=generator)
                seen_ISC = (x_ISC[i] - self.centre_SC) / self.scale_SC
                kept_IS1 = torch.rand(*seen_ISC.shape[:2], 1, generator=generator) >= fit.dropped
                logits_IKW = self._logits(seen_ISC * (kept_IS1 / (1 - fit.dropped)).to(seen_ISC), table_WD)
                aim_IK = which_QK[name_I[i]].to(logits_IKW.device)
                loss = F.cross_entropy(logits_IKW.flatten(0, 1), aim_IK.flatten(), label_smoothing=fit.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        optimizer.zero_grad()


def words_of_names(text: TextTokenizer, names: Sequence[str], words: int, *, filler: str = ".") -> Tensor:
    """The first words of each name as it stands within a sentence, [Q, K]; shorter names are filled up. Raises RebusError for a filler
    of several words."""
    filling = text.encode(filler)
    if len(filling) != 1:
        raise RebusError(
            f"What fills short names up must be one word, but {filler!r} is {len(filling)}. Give a single sign, such as '.'."
        )
    return torch.tensor([(text.encode(f" {name}") + filling * words)[:words] for name in names])


def parts(x_VNC: Tensor, grid: int) -> Tensor:
    """The means of `grid` x `grid` parts of a square grid of vectors, [V, S, C]."""
    side = round(x_VNC.shape[1] ** 0.5)
    x_VChw = rearrange(x_VNC, "v (h w) c -> v c h w", h=side)
    return rearrange(F.adaptive_avg_pool2d(x_VChw, grid), "v c h w -> v (h w) c")


def kept_parts(x_TC: Tensor, keep_IN: Tensor, grid: int) -> Tensor:
    """The same for square grids of which some vectors are kept, these end to end; zero where nothing of a part is kept."""
    side = round(keep_IN.shape[1] ** 0.5)
    along = torch.arange(side, device=keep_IN.device) * grid // side
    part_IN = (along[:, None] * grid + along).flatten().expand(len(keep_IN), -1)
    image_I1 = torch.arange(len(keep_IN), device=keep_IN.device)[:, None]
    own_T = (image_I1 * grid**2 + part_IN)[keep_IN]
    hits_X = own_T.bincount(minlength=len(keep_IN) * grid**2).clamp(min=1)
    sums_XC = x_TC.new_zeros(len(hits_X), x_TC.shape[1]).index_add(0, own_T, x_TC)
    return (sums_XC / hits_X[:, None].to(x_TC)).unflatten(0, (len(keep_IN), -1))
