"""After alignment: the whole language model learns to say what a picture shows (ours; mini only).

The lower layers read the picture of a thing as its name, more or less (`seed.align`); here the upper ones learn to say it. Of the image its last codes
alone are there, and of the reply the name alone is learned: a third of the words of a document that asks for it, and all of them
about what is shown.

    rebus train seed.naming --config mini --work state

Dimension key: I images · N codes of an image
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.mini.align import Saying, begun
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, named_stage, read_stage
from rebus.nn.text_model import TextModel
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.stages.align import image_vectors
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Stage, Trainable


@dataclass(frozen=True)
class Config(NamedConfig):
    """How names are learned."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    row_lr: float = 1e-4
    """Peak learning rate of the codes' rows."""


CONFIGS = {"mini": Config()}


class CodeNaming(nn.Module):
    """A language model that reads an image as codes, of which the `last` are there, and says what it shows."""

    def __init__(self, grammar: SeedGrammar, names: list[str], last: int) -> None:
        super().__init__()
        self.last = last
        self.first_code, self.end_image = grammar.config.first_code, grammar.config.end_image
        self.saying = Saying(grammar.text, names)
        self.before_B = nn.Buffer(torch.tensor([*begun(grammar.text), grammar.config.begin_image]), persistent=False)

    def forward(self, llm: TextModel, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        end_I1 = torch.full((len(ids_IN), 1), self.end_image)
        words_IN = torch.cat([ids_IN + self.first_code, end_I1], 1)
        x_ILD, places_L = image_vectors(llm, self.before_B, words_IN, self.last + 1)
        return self.saying(llm, list(x_ILD), name_I, places_L)


class Naming(nn.Module):
    """The language model, and the names that it is to say."""

    def __init__(self, whole: LanguageTraining, names: list[str], last: int) -> None:
        super().__init__()
        self.lm = whole.lm
        self.naming = CodeNaming(whole.grammar, names, last)

    def forward(self, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        return self.naming(self.lm.llm, ids_IN, name_I)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.align` needs, and its weights under `work`."""
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="plain", loss="reply", pack=None, base_dtype="auto")
    read_stage(whole, work / "seed.align")
    data = Frozen(work)

    def seen(split: str) -> tuple[np.ndarray, Tensor]:
        copies = config.copies if split == "train" else 1
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=copies)
        return ids_IN.numpy(), name_I

    names = load_named(work, "train").names
    module = Naming(whole, names, config.last)
    trainable = [Trainable("lm.llm.rows.*", config.row_lr), Trainable("lm.llm.*lora_*", config.lr)]
    return named_stage("seed.naming", module, seen, config, trainable, most=256)
