"""After stage 4: the language model learns to say, where an image begins, what it is to show (ours; mini only).

An image is written from words that the mark before it says (`rebus.nn.image_codes`); what these look like was fitted to pictures in `seed.naming`. From codes alone
a language model learns to say several words at once a little, which look like nothing; here the upper layers learn to say the right ones, from
wishes for a thing in a style. The lower layers stay as they are, so that what they make of wishes is computed once, and a step costs a quarter of a
step of language modelling. In each step a few pictures are named too, so that what was learned of reading stays.

    rebus train seed.drawing --config mini --work state

Dimension key: I pictures · N codes of an image · E codes of a place · K words · L length · C code width · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.data.pictures import Pictures, load_pictures
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import read_stage
from rebus.mini.wishes import DrawingConfig, LowerStates, Wishes, drawing_stage, last_states
from rebus.nn.image_codes import ImageCodes
from rebus.nn.word_drawings import WordDrawings
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import image_codes
from rebus.papers.seed.rates import WORDS
from rebus.papers.seed.stages.naming import CodeNaming
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes

NAME = "seed.drawing"


@dataclass(frozen=True)
class Config(DrawingConfig):
    """How drawing is begun."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    first: int = 12
    """First codes of an image whose likelihood is learned beside the vector that all of them add up to."""
    after: str = "seed.stage4_instruct"
    """Stage from whose weights it goes on."""
    word_lr: float = 1e-6
    """Peak learning rate of what draws from words: so low that it stays as it was fitted to pictures."""


CONFIGS = {
    "mini": Config(
        optim=Optim(steps=300, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


class CodeWishes(Wishes):
    """Wishes, and the codes of their pictures."""

    def __init__(self, pictures: Pictures, split: str, ids_IN: Tensor, grammar: SeedGrammar, wordings: int) -> None:
        super().__init__(pictures, split, wordings)
        self.ids_IN, self.grammar = ids_IN[: len(self.rows)], grammar

    def words(self, number: int) -> list[int]:
        """The words of the wish, and the mark that begins the image."""
        codes = Codes(self.ids_IN[number % len(self.rows)], self.grammar.source)
        document = Document((user(self.text(number)), assistant(Image(generated=codes))))
        ids = self.grammar.serialize(document, template="chat").ids
        return ids[: ids.index(self.grammar.config.begin_image) + 1]


class Drawing(nn.Module):
    """The language model, and what it is to draw and to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm, self.config = whole.lm, config
        self.naming = CodeNaming(whole.grammar, names, config.last)

    def forward(
        self, states: Sequence[Tensor], said_IK: Tensor, codes_IN: Tensor, ids_IN: Tensor, name_I: Tensor
    ) -> Losses:
        """The lower layers' states of wishes, [L, D] each, the places of the words that their pictures are drawn from and their codes; codes
        of images to be named, and their names."""
        codes, draws = written_from_words(image_codes(self.lm.llm))
        hidden_ID = last_states(self.lm.llm, self.config.depth, states, 1)[:, 0]
        nats, right = draws.saying(hidden_ID, said_IK.to(hidden_ID.device))
        codes_IN = codes_IN.to(hidden_ID.device)
        sums_INC = F.embedding(codes_IN, codes.codebook_VC).cumsum(1)
        wanted_IC = codes.wanted(hidden_ID)
        away = F.mse_loss(wanted_IC, sums_INC[:, -1]) / sums_INC[:, -1].var()
        first, each = self.config.first, codes.each
        before_INC = F.pad(sums_INC[:, : first - 1], (0, 0, 1, 0))
        nothing = hidden_ID.new_zeros(before_INC[..., 0].numel(), hidden_ID.shape[1])
        logits_TV = codes.logits(wanted_IC.repeat_interleave(first, 0), nothing, before_INC.flatten(0, 1))
        own_INE = torch.stack(
            [
                x_IV[:, n * each : (n + 1) * each]
                for n, x_IV in enumerate(logits_TV.unflatten(0, (-1, first)).unbind(1))
            ],
            1,
        )
        written = F.cross_entropy(own_INE.flatten(0, 1), (codes_IN[:, :first] % each).flatten())
        named = self.naming(self.lm.llm, ids_IN, name_I)
        total = self.config.saying_weight * nats + away + written + self.config.naming_weight * named.total
        parts = {"saying": nats, "wished": right, "away": away, "drawing": written, "naming": named.total}
        return Losses(total, {**parts, **named.parts})


def written_from_words(codes: ImageCodes | None) -> tuple[ImageCodes, WordDrawings]:
    """What a language model knows of codes, and what draws in it. Raises RebusError for one that writes by rows of a vocabulary."""
    if codes is None or codes.draws is None:
        raise RebusError(
            "This system's language model writes codes by the rows of its vocabulary, and not from words. Give its `language` `codes` "
            "that have `draws`."
        )
    return codes, codes.draws


@torch.no_grad()
def begun_anew(codes: ImageCodes) -> None:
    """Lets states add nothing to what the words look like."""
    if codes.beside is not None:
        codes.beside.weight.zero_()
        codes.beside.bias.zero_()


@dataclass(frozen=True)
class Seen:
    """A split: wishes with what the lower layers make of them, and pictures by codes and name."""

    wishes: CodeWishes
    states: LowerStates
    said_IK: Tensor
    ids_IN: Tensor
    name_I: Tensor

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`; beside them as many pictures as are to be `named`, any of them."""
        which = torch.from_numpy(np.random.default_rng(int(i[0])).integers(len(self.name_I), size=named))
        asked = torch.from_numpy(i % len(self.wishes.rows))
        states = [self.states[k] for k in i]
        return learning(states, self.said_IK[asked], self.wishes.ids_IN[asked], self.ids_IN[which], self.name_I[which])


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.naming` needs, and the weights of the stage that it comes after under `work`. Raises RebusError where more codes are asked for than an
    image has, no layer is left to learn, nothing is to be named or wished for, or codes are not written from words."""
    codes = config.system.tokenizer.qformer.queries
    if not 1 <= config.first <= codes:
        raise RebusError(
            f"Of an image's {codes} codes the first {config.first} are to be learned. Give `--first` a number from 1 to {codes}."
        )
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="chat", loss="reply", pack=None, base_dtype="auto")
    layers = len(whole.lm.llm.base.base_model.layers)
    config.check(layers)
    known, draws = written_from_words(image_codes(whole.lm.llm))
    read_stage(whole, work / config.after)
    # what states add to the words was learned beside words that were less sure
    begun_anew(known)
    data, pictures = Frozen(work), load_pictures(work / "emoji")

    def wished(split: str, wordings: int) -> CodeWishes:
        copies = config.copies if split == "train" else 1
        return CodeWishes(
            pictures, split, named_codes(data, whole.tokenizer, split, copies=copies)[0], whole.grammar, wordings
        )

    text = whole.grammar.text

    def seen(split: str) -> Seen:
        copies = config.copies if split == "train" else 1
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=copies)
        wishes = wished(split, config.wordings)
        words = [wishes.words(number) for number in range(len(wishes))]
        states = LowerStates(whole.lm.llm, words, config.depth, work / "cache" / f"seed_wishes.{split}.npy")
        return Seen(wishes, states, draws.places(wishes.said(text, draws.config.words)), ids_IN, name_I)

    trainable = [
        Trainable("lm.llm.codes.draws.*_K*", config.lr),
        Trainable("lm.llm.codes.sharpness", config.lr),
        Trainable("lm.llm.codes.beside.*", config.word_lr),
        Trainable(WORDS["draws"], config.word_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.depth, layers)),
    ]
    module = Drawing(whole, load_named(work, "train").names, config)
    return drawing_stage(NAME, module, seen, work, config, trainable)
