"""After alignment: the whole language model learns to say what a picture shows (ours; mini only).

The lower layers read the picture of a thing as its name, more or less (`seed.align`); here the upper ones learn to say it. Of the image its last codes
alone are there, and of the reply the name alone is learned: a third of the words of a document that asks for it, and all of them
about what is shown.

    rebus train seed.naming --config mini --work state

Dimension key: I images · N codes of an image
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.mini.align import Saying, begun, measured
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.stages.align import image_vectors
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, read_aligned, row_rates, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """How names are learned."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    last: int = 8
    """Last codes of an image that are there; read as running sums they say all."""
    copies: int = 4
    """How often each picture is there: as it is, and moved, turned and tinted."""
    batch: int = 64
    """Images of one step."""
    lr: float = 1e-3
    """Peak learning rate of the adapters."""
    row_lr: float = 1e-4
    """Peak learning rate of the codes' rows."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=500, warmup=0.05, min_lr_ratio=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    )
    """Optimiser and schedule."""
    seed: int = 42
    """Order of the images."""


CONFIGS = {"mini": Config()}


class Naming(nn.Module):
    """The language model, and the names that it is to say."""

    def __init__(self, whole: LanguageTraining, names: list[str], last: int) -> None:
        super().__init__()
        self.lm, self.last = whole.lm, last
        grammar, text = whole.grammar.config, whole.grammar.text
        self.first_code, self.end_image = grammar.first_code, grammar.end_image
        self.saying = Saying(text, names)
        self.before_B = nn.Buffer(torch.tensor([*begun(text), grammar.begin_image]), persistent=False)

    def forward(self, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        end_I1 = torch.full((len(ids_IN), 1), self.end_image)
        words_IN = torch.cat([ids_IN + self.first_code, end_I1], 1)
        x_ILD, places_L = image_vectors(self.lm.llm, self.before_B, words_IN, self.last + 1)
        return self.saying(self.lm.llm, list(x_ILD), name_I, places_L)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.align` needs, and its weights under `work`."""
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="plain", loss="reply", pack=None, base_dtype="bf16")
    read_aligned(whole, work / "seed.align")
    data = Frozen(work)
    ids_IN, name_I, names = named_codes(data, whole.tokenizer, copies=config.copies)
    module = Naming(whole, names, config.last)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            ids, name, _ = named_codes(data, whole.tokenizer, split, copies=config.copies if split == "train" else 1)
            yield from measured(
                split, ids.numpy(), name, lambda some, name_I: module(torch.from_numpy(some), name_I), most=256
            )

    def step(module: Naming, i: np.ndarray) -> Losses:
        return module(ids_IN[i], name_I[i])

    return Stage(
        name="seed.naming",
        module=module,
        step=step,
        trainable=[*row_rates(config.row_lr, None), Trainable("lm.llm.*lora_*", config.lr)],
        data=IndexBatches(len(ids_IN), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
