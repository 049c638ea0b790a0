"""After naming: the language model learns what things look like by name (ours; mini only).

The mirror of `seed.naming`: a wish for a thing in a style, and the first codes of its picture, which say the most; nothing else is
in the document. In each step some pictures are named too, so that what was learned of reading stays.

    rebus train seed.drawing --config mini --work state

Dimension key: I pictures · N codes of an image
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from rebus.data import phrases as p
from rebus.data.phrases import say, sentence
from rebus.data.pictures import Pictures, load_pictures, plain_rows
from rebus.data.selection import Selection
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, read_stage
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.stages.naming import CodeNaming
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, row_rates, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.sequence import Collated, collated
from rebus.sequence import Sequence as Words
from rebus.train import Losses, Stage, Trainable, parallel
from rebus.visual import Codes

NAME = "seed.drawing"


@dataclass(frozen=True)
class Config(NamedConfig):
    """How drawing is begun."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    first: int = 12
    """First codes of an image that are learned; those behind them say less and would be most of the work."""
    first_code_weight: float = 2.0
    """How many times as much an image's first code counts as its last would, as in stage 3."""
    named: int = 16
    """Pictures of a step that are named as well."""
    last: int = 8
    """Last codes that are there of an image that is named."""
    naming_weight: float = 0.5
    """Weight of naming's loss beside that of drawing."""
    pack: int = 128
    """Words of a packed row."""
    row_lr: float = 2e-3
    """Peak learning rate of the rows of codes that are written."""
    read_row_lr: float = 1e-4
    """Peak learning rate of those that are read."""


CONFIGS = {"mini": Config()}


class Wishes:
    """A wish for each of the split's pictures of one thing, in the order of `named_codes`, and the words of its answer."""

    def __init__(self, pictures: Pictures, split: str, known: set[str], ids_IN: Tensor, grammar: SeedGrammar) -> None:
        self.selection = Selection(pictures, split)
        self.rows = [row for row in plain_rows(pictures, split) if pictures.concept[row] in known]
        self.ids_IN, self.grammar, self.source = ids_IN, grammar, grammar.source
        assert len(self.rows) <= len(ids_IN)  # copies stand behind those as they are

    def __len__(self) -> int:
        return len(self.rows)

    def text(self, number: int, which: int) -> str:
        """How the picture `number` is wished for the time that is called `which`."""
        row, rng = self.rows[number], Random(f"{self.selection.split}/{number}/{which}")
        templates = p.DRAW if which % 4 == 3 else p.DRAW_IN_STYLE
        asked = self.selection.wish(row, rng) if which else self.selection.name(row)
        return sentence(say(templates, rng, a=asked, style=self.selection.style(row)))

    def words(self, number: int, which: int, first: int) -> Words:
        """The wish and the `first` codes of its picture, as words of which the codes are learned."""
        codes = Codes(self.ids_IN[number], self.source)
        document = Document((user(self.text(number, which)), assistant(Image(generated=codes))))
        words = self.grammar.serialize(document, template="chat", loss="reply")
        begin = words.ids.index(self.grammar.config.begin_image)
        stop = begin + 1 + first
        # that an image begins here is learned with it
        return Words(words.ids[:stop], [False] * begin + words.target[begin:stop])


class Drawing(nn.Module):
    """The language model, and what it is to draw and to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm = whole.lm
        self.naming = CodeNaming(whole.grammar, names, config.last)
        self.weight, self.pack = config.naming_weight, config.pack
        self.pad = whole.grammar.special.pad

    def rows(self, sequences: list[Words]) -> Collated:
        """Sequences end to end in rows of `pack` words."""
        least = min(2, parallel.world_size())
        return collated(sequences, pack=self.pack, least=least, pad_id=self.pad, device=self.lm.llm.device)

    def forward(self, drawn: Collated, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """What is drawn, and the codes of images to be named with their names."""
        drawing = self.lm.losses(drawn).text
        named = self.naming(self.lm.llm, ids_IN, name_I)
        return Losses(drawing + self.weight * named.total, {"drawing": drawing, "naming": named.total, **named.parts})


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.naming` needs, and its weights under `work`. Raises RebusError where more codes are asked for than an
    image has."""
    if not 1 <= config.first <= config.system.tokenizer.qformer.queries:
        raise RebusError(
            f"Of an image's {config.system.tokenizer.qformer.queries} codes the first {config.first} are to be learned. Give "
            "`--first` a number between 1 and all."
        )
    torch.manual_seed(config.seed)
    whole = training(
        config.system,
        work,
        template="chat",
        loss="reply",
        pack=None,
        base_dtype="bf16",
        first_code_weight=config.first_code_weight,
        code_softmax="position",
    )
    read_stage(whole, work / "seed.naming")
    data, pictures = Frozen(work), load_pictures(work / "emoji")
    known = {pictures.concept[row] for row in plain_rows(pictures, "train")}
    module = Drawing(whole, load_named(work, "train").names, config)

    def seen(split: str) -> tuple[Wishes, Tensor, Tensor]:
        copies = config.copies if split == "train" else 1
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=copies)
        return Wishes(pictures, split, known, ids_IN, whole.grammar), ids_IN, name_I

    wishes, ids_IN, name_I = seen("train")

    def step(learning: Drawing, i: np.ndarray) -> Losses:
        drawn = [wishes.words(number % len(wishes), number // len(wishes), config.first) for number in i.tolist()]
        some = i[: config.named]
        return learning(module.rows(drawn), ids_IN[some], name_I[some])

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            measured, codes_IN, names_I = seen(split)
            most = min(len(measured), 128)
            if most:
                drawn = module.rows([measured.words(number, 0, config.first) for number in range(most)])
                of = module(drawn, codes_IN[:most], names_I[:most])
                for figure, value in of.parts.items():
                    yield f"{split}/{figure}", float(value)

    return Stage(
        name=NAME,
        module=module,
        step=step,
        trainable=[*row_rates(config.row_lr, config.read_row_lr), Trainable("lm.llm.*lora_*", config.lr)],
        data=IndexBatches(len(name_I), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
