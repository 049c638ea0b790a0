"""Mosaic's one stage: the language model learns to name pictures and to paint them (section 5).

Next-token training on captions in both directions, of the pictures in `examples/`. Only the rows of colours and marks
learn.

    rebus train examples.mosaic.stages.stage1_language --steps 200
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from examples.mosaic.build import VARIANTS, MosaicConfig, build
from torch import nn

from rebus.data.loader import Loader
from rebus.document import Document, Image, assistant, user
from rebus.images import open_image
from rebus.lm import Losses
from rebus.sequence import collate
from rebus.system import System, encode
from rebus.train import Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """The stage; the defaults would be the paper's."""

    system: MosaicConfig = field(default_factory=lambda: VARIANTS["tiny"])
    """The system whose language model is trained."""
    batch: int = 8
    """Documents of one step."""
    lr: float = 1e-2
    """Peak learning rate of the rows of colours and marks."""
    optim: Optim = field(default_factory=lambda: Optim(steps=200, warmup=0.1))
    """Optimiser and schedule."""
    seed: int = 0
    """Of the rows' start."""


CONFIGS = {"tiny": Config(), "small": Config(system=VARIANTS["small"])}


class Captions:
    """Documents at positions without end: a picture and its caption, the caption asked for or the picture."""

    def __init__(self, folder: Path) -> None:
        said = json.loads((folder / "captions.json").read_text())
        self.pairs = [(Image(open_image(folder / name)), about["caption"]) for name, about in said.items()]

    def __getitem__(self, position: int) -> Document:
        image, caption = self.pairs[position // 2 % len(self.pairs)]
        return Document((user(image), assistant(caption)) if position % 2 else (user(caption), assistant(image)))


class LanguageTraining(nn.Module):
    """The language model with the tokenizer and the grammar that make sequences of documents."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.lm = system.lm
        self.system = [system]  # in a list, so that its modules are not taken for parts of this one

    def forward(self, documents: list[Document]) -> Losses:
        """Images become codes, documents become sequences, sequences a batch."""
        (system,) = self.system
        assert system.tokenizer is not None
        encoded = encode(system.tokenizer, documents, replies="generation")
        sequences = [system.grammar.serialize(document, template="plain") for document in encoded]
        return self.lm(collate(sequences, pad_id=system.grammar.special.pad).to(self.lm.llm.device))


def stage(config: Config, pictures: Path = Path("examples")) -> Stage:
    """Needs a folder of pictures with their captions in `captions.json`."""
    start = torch.Generator().manual_seed(config.seed)
    system = build(config.system, None, ("tokenizer", "lm"), "cpu", torch.float32, generator=start)
    return Stage(
        name="mosaic.stage1_language",
        module=LanguageTraining(system),
        step=lambda module, documents: module(documents),
        trainable=[Trainable("lm.llm.rows.*", config.lr)],
        data=Loader(Captions(pictures), config.batch),
        optim=config.optim,
        config=config,
    )
