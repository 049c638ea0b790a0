"""After naming: the upper layers of the language model learn what things look like by name (ours; mini only).

The mirror of `seed.align`: a wish for a thing in a style, and the first codes of its picture, which say the most; nothing else is
in the document. The lower layers stay as they are, so that what they make of wishes is computed once, and a step costs a quarter of a
step of language modelling. In each step a few pictures are named too, so that what was learned of reading stays.

    rebus train seed.drawing --config mini --work state

Dimension key: I pictures · N codes of an image · E codes of a place · T words of all wishes · L length · D language-model width
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
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
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
    """First codes of an image that are learned; those behind them say less and would be most of the work."""
    first_code_weight: float = 2.0
    """How many times as much the first of these codes counts as the last."""
    row_lr: float = 5e-4
    """Peak learning rate of the rows of codes that are written; those that are read stay."""


CONFIGS = {
    "mini": Config(
        optim=Optim(steps=600, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


class CodeWishes(Wishes):
    """Wishes and the codes of their pictures."""

    def __init__(self, pictures: Pictures, split: str, ids_IN: Tensor, grammar: SeedGrammar, config: Config) -> None:
        super().__init__(pictures, split, config.wordings)
        self.ids_IN, self.grammar, self.first = ids_IN[: len(self.rows)], grammar, config.first

    def words(self, number: int) -> list[int]:
        """The words of the wish, the mark that begins the image, and all but the last of the codes that are learned."""
        codes = Codes(self.ids_IN[number % len(self.rows)], self.grammar.source)
        document = Document((user(self.text(number)), assistant(Image(generated=codes))))
        ids = self.grammar.serialize(document, template="chat").ids
        return ids[: ids.index(self.grammar.config.begin_image) + self.first]

    def codes(self, numbers: np.ndarray) -> Tensor:
        """What is learned, as places among the codes of their own place, [I, first]."""
        each = self.grammar.config.codes // self.grammar.config.per_image
        return self.ids_IN[torch.from_numpy(numbers % len(self.rows)), : self.first] % each


class Drawing(nn.Module):
    """The language model, and what it is to draw and to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm, self.config = whole.lm, config
        self.naming = CodeNaming(whole.grammar, names, config.last)
        grammar = whole.grammar.config
        each = grammar.codes // grammar.per_image
        start = grammar.first_code - whole.lm.llm.words
        self.rows, self.each = slice(start, start + config.first * each), each
        weights_N = config.first_code_weight ** torch.linspace(1, 0, config.first)
        self.weights_N = nn.Buffer(weights_N / weights_N.mean(), persistent=False)

    def nats(self, states: Sequence[Tensor], which_IN: Tensor) -> Tensor:
        """What each code costs among those of its place, [I, N]; `states` are the lower layers', [L, D] each."""
        llm = self.lm.llm
        assert llm.rows is not None
        x_IND = last_states(llm, self.config.depth, states, self.config.first)
        table_NED = llm.rows.output.table()[self.rows].unflatten(0, (-1, self.each))
        logits_INE = torch.einsum("ind,ned->ine", x_IND, table_NED.to(x_IND.dtype)).float()
        return F.cross_entropy(logits_INE.flatten(0, 1), which_IN.to(x_IND.device).flatten(), reduction="none").view(
            which_IN.shape
        )

    def forward(self, states: Sequence[Tensor], which_IN: Tensor, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Wishes and the codes of their pictures; codes of images to be named, and their names."""
        nats_IN = self.nats(states, which_IN)
        named = self.naming(self.lm.llm, ids_IN, name_I)
        total = (nats_IN * self.weights_N).mean() + self.config.naming_weight * named.total
        return Losses(
            total, {"drawing": nats_IN.mean(), "first": nats_IN[:, 0].mean(), "naming": named.total, **named.parts}
        )


@dataclass(frozen=True)
class Seen:
    """A split: wishes with what the lower layers make of them, and pictures by codes and name."""

    wishes: CodeWishes
    states: LowerStates
    ids_IN: Tensor
    name_I: Tensor

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`, the first `named` of which are for pictures that are named too."""
        some = torch.from_numpy(i[:named] % len(self.name_I))
        return learning([self.states[k] for k in i], self.wishes.codes(i), self.ids_IN[some], self.name_I[some])


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.naming` needs, and its weights under `work`. Raises RebusError where more codes are asked for than an
    image has, no layer is left to learn, or nothing is to be named or wished for."""
    codes = config.system.tokenizer.qformer.queries
    if not 1 <= config.first <= codes:
        raise RebusError(
            f"Of an image's {codes} codes the first {config.first} are to be learned. Give `--first` a number from 1 to {codes}."
        )
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="chat", loss="reply", pack=None, base_dtype="auto")
    layers = len(whole.lm.llm.base.base_model.layers)
    config.check(layers)
    read_stage(whole, work / "seed.naming")
    data, pictures = Frozen(work), load_pictures(work / "emoji")
    module = Drawing(whole, load_named(work, "train").names, config)

    def seen(split: str) -> Seen:
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=config.copies if split == "train" else 1)
        wishes = CodeWishes(pictures, split, ids_IN, whole.grammar, config)
        words = [wishes.words(number) for number in range(len(wishes))]
        file = work / "cache" / f"seed_wishes.{split}.npy"
        return Seen(wishes, LowerStates(whole.lm.llm, words, config.depth, file), ids_IN, name_I)

    trainable = [
        Trainable("lm.llm.rows.output.*", config.row_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.depth, layers)),
    ]
    return drawing_stage(NAME, module, seen, work, config, trainable)
