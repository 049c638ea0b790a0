"""A picture drawn from words: what a language model's states say a picture shows, as words of its own, made into the picture's vectors.

The mirror of `rebus.nn.word_readings`. Each of a few states is read by the language model's own head, among the words that name things and
styles; the mean of these words' vectors goes through a small network that was fitted to pictures and their names. A language model that has
to say words in the place of a picture need only repeat what it was asked for; what things look like, the network knows.

Of the features of 6,492 trained pictures of 1,413 names in six styles such a fit leaves 24 % of the variance after a minute and a half on a processor core, and
58 % of those of 144 pictures whose concept is trained in other styles; a language model that was taught to say the features themselves left 85 %
of trained ones after ten thousand wishes. (Ours; in the papers a language model of 13 billion weights draws without it.)

Dimension key: I images · K words said of each · W words to choose from · D width of the language model · R rank · H hidden width ·
S vectors of an image · C their width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.attention import MLP
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.nn.word_readings import words_of_names


@dataclass(frozen=True)
class WordDrawingsConfig:
    """How words become pictures."""

    words: int = 5
    """Words that are said: the first of a name, and one of the style."""
    rank: int = 96
    """Numbers of a word that the network is told."""
    hidden: int = 384
    """Width of the network."""
    depth: int = 2
    """Its residual layers."""
    choices: int = 2048
    """Most words that can be chosen from."""
    apart: int = 0
    """Rank of the maps by which one state says all words; 0: there is a state for each word."""
    sharper: float = 3.0
    """How many times as sure the words are taken to be when a picture is drawn as while it is learned: a mean of what may be meant looks like
    neither."""


@dataclass(frozen=True)
class DrawingFit:
    """How the network is fitted to pictures and their names."""

    steps: int = 2000
    """Steps of the optimiser."""
    batch: int = 256
    """Pictures of one step."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled."""
    dropped: float = 0.1
    """Share of the words that are left out, anew each time, and of the numbers of each layer."""


class WordDrawings(nn.Module):
    """States of a language model that it was told to `look_up_in` → the vectors of a picture, [S, C]."""

    ids_W: Tensor
    middle_D: Tensor
    centre_SC: Tensor
    spread: Tensor

    def __init__(self, config: WordDrawingsConfig, width: int, vectors: int, visual_width: int) -> None:
        super().__init__()
        self.config, self.shape = config, (vectors, visual_width)
        words, hidden = config.words, config.hidden
        if config.apart:
            self.down_KDR = nn.Parameter(torch.zeros(words, width, config.apart))
            self.up_KRD = nn.Parameter(torch.zeros(words, config.apart, width))
        self.down = nn.Linear(width, config.rank)
        self.first = nn.Linear(words * config.rank, hidden)
        norms = [nn.LayerNorm(hidden) for _ in range(config.depth)]
        layers = [MLP(hidden, 2 * hidden) for _ in range(config.depth)]
        self.norms, self.layers = nn.ModuleList(norms), nn.ModuleList(layers)
        self.norm, self.out = nn.LayerNorm(hidden), nn.Linear(hidden, vectors * visual_width)
        # before a fit nothing is drawn
        for linear in (self.out, *(layer.fc2 for layer in layers)):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.register_buffer("ids_W", F.pad(torch.zeros(1, dtype=torch.int64), (0, config.choices - 1), value=-1))
        self.register_buffer("middle_D", torch.zeros(width))
        self.register_buffer("centre_SC", torch.zeros(vectors, visual_width))
        self.register_buffer("spread", torch.ones(()))
        self._words_of: tuple[TextModel, ...] = ()

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words they are. It is no part of this module, whose weights hold ids alone."""
        self._words_of = (llm,)

    @property
    def llm(self) -> TextModel:
        """Whose words they are. Raises RebusError where nobody said so."""
        if not self._words_of:
            raise RebusError(
                "A picture was to be drawn from words, but of no language model. Give the projector to an InterleavedLM, or "
                "call `look_up_in`."
            )
        return self._words_of[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """How likely each word is, [I, K, W], before the softmax, by the language model's head: of states [I, K, D], or where one says
        all words, [I, D]."""
        if self.config.apart:
            low_IKR = torch.einsum("id,kdr->ikr", hidden, self.down_KDR.to(hidden.dtype))
            hidden = hidden[:, None] + torch.einsum("ikr,krd->ikd", low_IKR, self.up_KRD.to(hidden.dtype))
        ids_W = self.ids_W[self.ids_W >= 0]
        return F.linear(hidden, self.llm.base.get_output_embeddings().weight[ids_W].to(hidden.dtype)).float()

    def forward(self, hidden: Tensor, *, sharper: float = 1.0) -> Tensor:
        """What the words of states look like, [I, S, C] in float32; `sharper` multiplies how sure they are."""
        weights_IKW = (self.logits(hidden) * sharper).softmax(-1)
        return self.drawn(weights_IKW @ self._vectors(self.ids_W[self.ids_W >= 0]))

    def drawn(self, said_IKD: Tensor) -> Tensor:
        """What vectors of words look like, [I, S, C]."""
        return self._network(said_IKD).unflatten(1, self.shape).float() * self.spread + self.centre_SC

    def places(self, words_IK: Tensor) -> Tensor:
        """The places of words among those that can be chosen from. Raises RebusError where one is not among them."""
        ids_W = self.ids_W[self.ids_W >= 0]
        where_IKW = words_IK[..., None].to(ids_W.device) == ids_W
        if not bool(where_IKW.any(-1).all()):
            raise RebusError(
                "Some words to be said are not among those that pictures are drawn from. Fit the network to all names that "
                "are drawn."
            )
        return where_IKW.int().argmax(-1)

    def known(self, words_IK: Tensor) -> Tensor:
        """Of which pictures all words are among those that can be chosen from, bool [I]."""
        return torch.isin(words_IK.to(self.ids_W.device), self.ids_W).all(-1)

    def saying(self, hidden: Tensor, places_IK: Tensor) -> tuple[Tensor, Tensor]:
        """What it costs to say words, in nats a word, and the share of pictures of which all words are right."""
        logits_IKW = self.logits(hidden)
        nats = F.cross_entropy(logits_IKW.flatten(0, 1), places_IK.flatten())
        return nats, (logits_IKW.argmax(-1) == places_IK).all(-1).float().mean()

    def _vectors(self, ids: Tensor) -> Tensor:
        """Of words, seen from the middle of all, of length √D."""
        x = self.llm.base.get_input_embeddings().weight[ids].to(self.middle_D) - self.middle_D
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5

    def _network(self, said_IKD: Tensor, dropped: float = 0.0) -> Tensor:
        x_IH = self.first(self.down(said_IKD).flatten(1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x_IH = x_IH + F.dropout(layer(norm(x_IH)), dropped, training=dropped > 0)
        return self.out(self.norm(x_IH))

    @torch.no_grad()
    def fit(
        self, words_IK: Tensor, x_ISC: Tensor, *, fit: DrawingFit | None = None, generator: torch.Generator
    ) -> None:
        """Fits the network to pictures, of each the words and the vectors. Raises RebusError for more words than can be chosen from,
        and as `llm` does."""
        fit = fit or DrawingFit()
        ids_W = words_IK.unique()
        if len(ids_W) > self.config.choices:
            raise RebusError(
                f"The pictures' words are {len(ids_W)}, but pictures are drawn from one of at most {self.config.choices}. Raise "
                "`choices`."
            )
        self.ids_W.fill_(-1)[: len(ids_W)] = ids_W.to(self.ids_W.device)
        self.middle_D.copy_(self.llm.base.get_input_embeddings().weight.float().mean(0))
        x_ISC = x_ISC.to(self.centre_SC)
        self.centre_SC.copy_(x_ISC.mean(0))
        self.spread.copy_((x_ISC - self.centre_SC).std())
        aim_IX = ((x_ISC - self.centre_SC) / self.spread).flatten(1)
        vectors_WD, which_IK = self._vectors(ids_W), torch.searchsorted(ids_W, words_IK)
        self._begin(generator)
        learning = [p for n, p in self.named_parameters() if n not in ("down_KDR", "up_KRD")]
        optimizer = torch.optim.AdamW(learning, weight_decay=fit.weight_decay, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps, pct_start=0.1)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            for parameter in learning:
                parameter.requires_grad_(True)
            for _ in range(fit.steps):
                i = torch.randint(len(words_IK), (min(fit.batch, len(words_IK)),), generator=generator)
                said_IKD = vectors_WD[which_IK[i]]
                kept_IK1 = torch.rand(*said_IKD.shape[:2], 1, generator=generator) >= fit.dropped
                made_IX = self._network(said_IKD * kept_IK1.to(said_IKD), fit.dropped)
                loss = F.mse_loss(made_IX, aim_IX[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        optimizer.zero_grad()

    def _begin(self, generator: torch.Generator) -> None:
        """Random weights to fit from: what goes through keeps its size, and the residual layers do nothing yet."""
        layers = [layer for layer in self.layers if isinstance(layer, MLP)]
        for linear in (self.down, self.first, self.out, *(layer.fc1 for layer in layers)):
            bound = linear.in_features**-0.5
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.zeros_(linear.bias)
        for layer in layers:
            nn.init.zeros_(layer.fc2.weight)
            nn.init.zeros_(layer.fc2.bias)
        for norm in [part for part in self.modules() if isinstance(part, nn.LayerNorm)]:
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        if self.config.apart:
            nn.init.normal_(self.down_KDR, std=len(self.middle_D) ** -0.5, generator=generator)
            nn.init.zeros_(self.up_KRD)


def words_of_wishes(text: TextTokenizer, names: Sequence[str], styles: Sequence[str], words: int) -> Tensor:
    """The words that pictures of these names and styles are drawn from, [I, words]: the first of the name, and the first of the style."""
    return torch.cat([words_of_names(text, names, words - 1), words_of_names(text, styles, 1)], dim=1)
