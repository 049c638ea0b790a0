"""Before pre-training: images of one thing are read as their names are, in the lower layers of the LM (ours; mini only).

As `rebus.papers.seed.stages.align`, of which this is the same for an image that goes in as vectors: the way in learns beside the
lower layers' adapters.

    rebus train seed_x.align --config mini --work state

Dimension key: I images · N patches · W views of an image · C width · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from rebus.lm import InterleavedLM
from rebus.mini.align import AlignConfig, VectorAlignment
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import ALIGN_OPTIM, NamedConfig, lend_adapters, named_stage, patches
from rebus.papers.seed_x.beginnings import begin_projectors
from rebus.papers.seed_x.language_training import LanguageTraining
from rebus.papers.seed_x.projectors import SeedXInputProjector
from rebus.papers.seed_x.stages import pretrain
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import MINI, SeedXConfig
from rebus.papers.seed_x.views import positions
from rebus.train import Losses, Stage, Trainable
from rebus.visual import Features

NAME = "seed_x.align"


@dataclass(frozen=True)
class Config(NamedConfig):
    """How reading is begun."""

    system: SeedXConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    visual_lr: float = 1e-3
    """Peak learning rate of the way in."""
    adapters: str | None = None
    """Whose adapters these begin with, after names were read without: a saved system's folder, or the name of embedded weights;
    none: those that change nothing. One that has learned to say what it reads need not learn it again."""


CONFIGS = {"mini": Config(batch=192, adapters="seed-mini", lr=2e-3, optim=ALIGN_OPTIM)}


class Alignment(nn.Module):
    """The language model with its ways in and out."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: AlignConfig, last: int) -> None:
        super().__init__()
        self.last = last
        self.lm = whole.lm
        grammar = whole.grammar
        self.aligned = VectorAlignment(whole.lm.llm, grammar.text, grammar.config.begin_image, names, config)

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        return self.aligned(self.lm.llm, image_vectors(self.lm, x_INC, self.last), name_I)


def image_vectors(lm: InterleavedLM, x_INC: Tensor, last: int) -> list[Tensor]:
    """What the language model reads of images of these patches, each one view: its `last` slots, [slots, D] each."""
    projector, where_W2 = lm.input_projector, positions(None)
    assert isinstance(projector, SeedXInputProjector)
    slots = projector([Features(x_NC[None], "", where_W2) for x_NC in x_INC]).chunk(len(x_INC))
    return [x_SD[-last:] for x_SD in slots]


def fresh(system: SeedXConfig, data: Frozen, seed: int) -> LanguageTraining:
    """The language model that has learned nothing yet, on the bank's vision encoder."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = SeedXTokenizer(system.tokenizer, generator=generator)
    tokenizer.vision.trunk.load_state_dict(data.vision.vit.state_dict())
    config = pretrain.Config(system, locations="smooth", base_dtype="bf16", seed=seed)
    return pretrain.fresh(config, tokenizer, None, generator)


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision under `work`. Raises RebusError where more
    places are compared than are there."""
    config.align.check(config.last)
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    begin_projectors(whole, data, torch.Generator().manual_seed(config.seed), named=True)
    module = Alignment(whole, load_named(work, "train").names, config.align, config.last)
    if config.adapters is not None:
        lend_adapters(whole.lm.llm, config.adapters)
    trainable = [
        Trainable("lm.input_projector.*", config.visual_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
    ]
    return named_stage(NAME, module, patches(data, config), config, trainable)
