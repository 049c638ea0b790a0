"""After stage 4: the language model learns to say, where an image begins, what it is to show (ours; mini only).

As `rebus.papers.seed.stages.drawing`, for an image of which some patches are kept: what words look like, of every patch whether it is kept and its
code, is fitted to pictures first (`rebus.nn.patch_codes`); then the upper layers learn to say the right words, from wishes for a thing in a style. In each
step a few pictures are named too, so that what was learned of reading stays.

    rebus train lavit.drawing --config mini --work state

Dimension key: I pictures · N patches · K words · L length · T codes of the longest image · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rebus.data.pictures import load_pictures
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen, named_tokens, take
from rebus.mini.named import load_named
from rebus.mini.vector_stages import vector_naming
from rebus.mini.wishes import DrawingConfig, LowerStates, Wishes, drawing_stage, last_states
from rebus.nn.patch_codes import PatchCodes
from rebus.nn.text_model import TextModel
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import patch_codes
from rebus.papers.lavit.language_training import LanguageTraining, go_on
from rebus.papers.lavit.stages import naming
from rebus.papers.lavit.stages.stage2_language import parts
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes

NAME = "lavit.drawing"


@dataclass(frozen=True)
class Config(DrawingConfig):
    """How drawing is begun."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    after: str = "lavit.stage4_instruct"
    """Stage from whose weights it goes on."""
    written: int = 16
    """Pictures of a step whose codes teach how sharply the nearest are chosen."""
    last: int = 64
    """Last vectors of an image that is named; here all of them."""
    word_lr: float = 1e-6
    """Peak learning rate of what draws from words: so low that it stays as it was fitted to pictures."""


CONFIGS = {
    "mini": Config(
        optim=Optim(steps=300, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


def words(wishes: Wishes, number: int, grammar: LavitGrammar) -> list[int]:
    """The words of a wish, and the mark that begins the image."""
    blank = Codes(torch.zeros(1, dtype=torch.int64), grammar.source)
    row = grammar.serialize(Document((user(wishes.text(number)), assistant(Image(generated=blank)))), template="chat")
    return row.ids[: row.ids.index(grammar.config.begin_image) + 1]


class Drawing(nn.Module):
    """The language model with its way in, what it is to draw and what to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.config = whole.lm, whole.tokenizer, config
        self.naming = vector_naming(whole.grammar, names)

    def forward(
        self, states: Sequence[Tensor], said_IK: Tensor, codes_IT: Tensor, named_INC: Tensor, name_I: Tensor
    ) -> Losses:
        """The lower layers' states of wishes, [L, D] each, the places of the words that their pictures are drawn from and their codes (−1: behind
        the last); patches of images to be named, and their names."""
        lm, config = self.lm, self.config
        codes = written_from_words(lm.llm)
        hidden_ID = last_states(lm.llm, config.depth, states, 1)[:, 0]
        nats, right = codes.draws.saying(hidden_ID, said_IK.to(hidden_ID.device))
        # words are learned by what they should have been; codes teach only how near to what is wanted they lie
        wanted_IPX = codes.wanted(hidden_ID[: config.written]).detach()
        written = code_nats(codes, wanted_IPX, codes_IT[: config.written].to(hidden_ID.device))
        vectors = [x_TD[-config.last :] for x_TD in naming.read(lm, self.tokenizer, named_INC.to(lm.llm.device))]
        named = self.naming(lm.llm, vectors, name_I)
        total = config.saying_weight * nats + written + config.naming_weight * named.total
        return Losses(
            total, {"saying": nats, "wished": right, "drawing": written, "naming": named.total, **named.parts}
        )


def written_from_words(llm: TextModel) -> PatchCodes:
    """What a language model knows of codes. Raises RebusError for one that writes them by rows of a vocabulary."""
    if (codes := patch_codes(llm)) is None:
        raise RebusError(
            "This system's language model writes codes by the rows of its vocabulary, and not from words. Give its `language` `codes`."
        )
    return codes


def code_nats(codes: PatchCodes, wanted_IPX: Tensor, codes_IT: Tensor) -> Tensor:
    """What it costs, in nats a word, to write these codes and to end behind them, of images that are to look so."""
    said_IUV = codes.follow(wanted_IPX, codes_IT)
    count_I = (codes_IT >= 0).sum(1)
    aim_IU = F.pad(codes_IT + 1, (0, 1))  # behind the last code comes the end, which stands first
    there_IU = torch.arange(aim_IU.shape[1], device=aim_IU.device) <= count_I[:, None]
    return F.nll_loss(said_IUV[there_IU], aim_IU.clamp(min=0)[there_IU])


@torch.no_grad()
def tokens_of(tokenizer: LavitTokenizer, tokens: np.ndarray, count: int) -> tuple[Tensor, list[Tensor]]:
    """Which patches of the first `count` pictures are kept, [I, N], and the codes of each."""
    keep, ids = [], []
    for i in parts(np.arange(count)):
        x_INC = take(tokens, i)[:, 1:]
        keep_IN = tokenizer.keep(x_INC)
        keep.append(keep_IN)
        ids += tokenizer.ids(x_INC, keep_IN).split(keep_IN.sum(1).tolist())
    return torch.cat(keep), ids


def fit_drawings(whole: LanguageTraining, data: Frozen, wishes: Wishes, generator: torch.Generator) -> None:
    """Fits what draws from words to the patches of wishes' pictures."""
    codes = written_from_words(whole.lm.llm)
    tokens, _, _ = named_tokens(data, wishes.split)
    keep_IN, ids = tokens_of(whole.tokenizer, tokens, len(wishes.rows))
    said_IK = wishes.said(whole.grammar.text, codes.draws.config.words)
    codes.draws.fit(said_IK, codes.aim(keep_IN, ids), generator=generator)


@dataclass(frozen=True)
class Seen:
    """A split: wishes with what the lower layers make of them, the codes of their pictures, and what the vision encoder says of pictures, with their
    names."""

    wishes: Wishes
    states: LowerStates
    said_IK: Tensor
    codes_IT: Tensor
    tokens: np.ndarray
    name_I: Tensor

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`; beside them as many pictures as are to be `named`, any of them."""
        which = np.random.default_rng(int(i[0])).integers(len(self.tokens), size=named)
        named_INC, name_I = take(self.tokens, which)[:, 1:], self.name_I[torch.from_numpy(which)]
        asked = torch.from_numpy(i % len(self.wishes.rows))
        states = [self.states[k] for k in i]
        return learning(states, self.said_IK[asked], self.codes_IT[asked], named_INC, name_I)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `lavit.naming` needs, and the weights of the stage that it comes after under `work`. Raises RebusError where no layer is left to
    learn, nothing is to be named or wished for, or codes are not written from words."""
    torch.manual_seed(config.seed)
    data, pictures = Frozen(work), load_pictures(work / "emoji")
    whole = naming.fresh(config.system, data, config.seed)
    layers = len(whole.lm.llm.base.base_model.layers)
    config.check(layers)
    codes = written_from_words(whole.lm.llm)
    go_on(whole, work / config.after)
    fit_drawings(whole, data, Wishes(pictures, "train", 1), torch.Generator().manual_seed(config.seed))

    def seen(split: str) -> Seen:
        wishes = Wishes(pictures, split, config.wordings)
        tokens, name_I, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
        rows = [words(wishes, k, whole.grammar) for k in range(len(wishes))]
        states = LowerStates(whole.lm.llm, rows, config.depth, work / "cache" / f"lavit_wishes.{split}.npy")
        _, ids = tokens_of(whole.tokenizer, tokens, len(wishes.rows))
        said_IK = codes.draws.places(wishes.said(whole.grammar.text, codes.draws.config.words))
        return Seen(wishes, states, said_IK, pad_sequence(ids, batch_first=True, padding_value=-1), tokens, name_I)

    trainable = [
        Trainable("lm.llm.codes.draws.*_K*", config.lr),
        Trainable("lm.llm.codes.sharpness", config.lr),
        Trainable("lm.llm.codes.draws.*", config.word_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.depth, layers)),
    ]
    module = Drawing(whole, load_named(work, "train").names, config)
    return drawing_stage(NAME, module, seen, work, config, trainable)
