"""An image read as the first words of its name: vectors that lie where a language model's own word vectors lie.

A linear layer of an image's parts says which of the names that training knows it has; what is read is the mean of these names' words in the language
model's table, weighted by how likely each name is. A language model that is given words need not learn to read.

One linear layer for all parts and a mean over them would say only what parts say on the average, wherever they lie. And words that are chosen each for itself
are harder to tell apart than names: of what SEED's codes of an image add up to, all four words were right for 73 % of 6,492 trained pictures of 1,413 names and
20 % of 144 others of such names, chosen one by one at rank 144; as names at rank 128 99 and 42 % (the nearest trained picture: 34 %). (Ours; in the papers a
language model of 13 billion weights puts parts together.)

Dimension key: V views · I images · N vectors of a view or image, a square grid · T kept vectors of all images · S parts, a square
grid · C width · R rank · K words read · Q names · D word width
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
    """First words of a name that are read; they take the place of an image's last vectors."""
    rank: int = 128
    """Numbers by which names are told apart."""
    names: int = 1536
    """Most names that can be told apart."""


@dataclass(frozen=True)
class WordFit:
    """How the layers are fitted to names."""

    steps: int = 1500
    """Steps of the optimiser."""
    batch: int = 384
    """Images of one step."""
    lr: float = 4e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled, of the layers."""
    dropped: float = 0.1
    """Share of an image's parts that are left out, anew each time."""
    noise: float = 0.5
    """Deviation of the noise that is added to parts, in units of theirs, anew each time."""
    smoothing: float = 0.02
    """Share of the aim that goes to all names alike."""


class WordReadings(nn.Module):
    """Parts of images → words of the language model that it was told to `look_up_in`: each read vector is a mean of word vectors."""

    words_QK: Tensor
    centre_SC: Tensor
    scale: Tensor

    def __init__(self, config: WordReadingsConfig, width: int) -> None:
        super().__init__()
        self.config = config
        parts = config.grid**2
        self.down_SCR = nn.Parameter(torch.zeros(parts, width, config.rank))
        self.names_QR = nn.Parameter(torch.zeros(config.names, config.rank))
        self.sharpness = nn.Parameter(torch.tensor(2.5))
        # the words of the names that are told apart, -1 where there are fewer names; before a fit there is one
        words_QK = F.pad(torch.zeros(1, config.words, dtype=torch.int64), (0, 0, 0, config.names - 1), value=-1)
        self.register_buffer("words_QK", words_QK)
        self.register_buffer("centre_SC", torch.zeros(parts, width))
        self.register_buffer("scale", torch.ones(()))
        self._words_of: tuple[TextModel, ...] = ()

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words they are. It is no part of this module, whose weights hold ids alone."""
        self._words_of = (llm,)

    @property
    def known_Q(self) -> Tensor:
        """Which places hold a name, bool [Q]."""
        return self.words_QK[:, 0] >= 0

    def vectors(self) -> Tensor:
        """The vectors of the names' words, [Q, K, D]. Raises RebusError where nobody said whose words they are."""
        if not self._words_of:
            raise RebusError(
                "An image was to be read as words, but of no language model. Give the projector to an InterleavedLM, or call "
                "`look_up_in`."
            )
        return self._words_of[0].embed(self.words_QK[self.known_Q])

    def read(self, x_ISC: Tensor) -> Tensor:
        """Means of word vectors, [I, K, D]."""
        x_QKD = self.vectors()
        likely_IQ = self.logits(x_ISC).softmax(-1).to(x_QKD.dtype)
        return (likely_IQ @ x_QKD.flatten(1)).unflatten(1, x_QKD.shape[1:])

    def logits(self, x_ISC: Tensor) -> Tensor:
        """How likely each name is, [I, Q], before the softmax: a cosine, sharpened."""
        return self._logits((x_ISC.to(self.down_SCR) - self.centre_SC) / self.scale)

    def _logits(self, x_ISC: Tensor) -> Tensor:
        low_IR = F.normalize(torch.einsum("isc,scr->ir", x_ISC, self.down_SCR), dim=-1)
        return low_IR @ F.normalize(self.names_QR[self.known_Q], dim=-1).T * self.sharpness.exp()

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
        names than can be told apart."""
        fit = fit or WordFit()
        count, x_ISC = len(words_QK), x_ISC.to(self.down_SCR)
        if count > self.config.names:
            raise RebusError(
                f"The pictures have {count} names, but images are read as one of at most {self.config.names}. Raise `names`."
            )
        self.words_QK.fill_(-1)[:count] = words_QK.to(self.words_QK)
        self.centre_SC.copy_(x_ISC.mean(0))
        self.scale.copy_((x_ISC - self.centre_SC).std())
        self.down_SCR.copy_(torch.randn(self.down_SCR.shape, generator=generator) * 0.02)
        self.names_QR.copy_(torch.randn(self.names_QR.shape, generator=generator) * 0.05)
        self.sharpness.fill_(2.5)
        learning = [self.down_SCR, self.names_QR, self.sharpness]
        optimizer = torch.optim.AdamW(learning, weight_decay=fit.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps)
        with torch.enable_grad():
            for parameter in learning:
                parameter.requires_grad_(True)
            for _ in range(fit.steps):
                i = torch.randint(len(x_ISC), (min(fit.batch, len(x_ISC)),), generator=generator)
                seen_ISC = (x_ISC[i] - self.centre_SC) / self.scale
                seen_ISC = seen_ISC + fit.noise * torch.randn(seen_ISC.shape, generator=generator).to(seen_ISC)
                kept_IS1 = torch.rand(*seen_ISC.shape[:2], 1, generator=generator) >= fit.dropped
                logits_IQ = self._logits(seen_ISC * (kept_IS1 / (1 - fit.dropped)).to(seen_ISC))
                loss = F.cross_entropy(logits_IQ, name_I[i].to(logits_IQ.device), label_smoothing=fit.smoothing)
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
