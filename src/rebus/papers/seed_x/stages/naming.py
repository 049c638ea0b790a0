"""Before pre-training: the language model learns to say what a picture shows (ours; mini only).

As `rebus.papers.seed.stages.naming`, for an image that goes in as vectors, of which the last are words that were fitted to names
(`rebus.nn.word_readings`): what is left to learn is to say them.

    rebus train seed_x.naming --config mini --work state

Dimension key: I images · N patches · W views of an image · C width · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rebus.lm import InterleavedLM
from rebus.mini.frozen import Frozen
from rebus.mini.vector_stages import VectorNamingConfig, naming_stage
from rebus.papers.seed_x.beginnings import begin_projectors
from rebus.papers.seed_x.language_training import WORDS, LanguageTraining
from rebus.papers.seed_x.projectors import SeedXInputProjector
from rebus.papers.seed_x.stages import pretrain
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import MINI, SeedXConfig
from rebus.papers.seed_x.views import positions
from rebus.train import Optim, Stage, Trainable
from rebus.visual import Features

NAME = "seed_x.naming"


@dataclass(frozen=True)
class Config(VectorNamingConfig):
    """How names are learned."""

    system: SeedXConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""


CONFIGS = {
    "mini": Config(
        adapters="seed-mini",
        batch=32,
        optim=Optim(steps=150, warmup=0.05, min_lr_ratio=0.1, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


def read(lm: InterleavedLM, tokenizer: SeedXTokenizer, x_INC: Tensor) -> list[Tensor]:
    """What the language model reads of images of these patches, each one view: [slots, D] of each."""
    projector, where_W2 = lm.input_projector, positions(None)
    assert isinstance(projector, SeedXInputProjector)
    return list(projector([Features(x_NC[None], "", where_W2) for x_NC in x_INC]).chunk(len(x_INC)))


def fresh(system: SeedXConfig, data: Frozen, seed: int) -> LanguageTraining:
    """The language model that has learned nothing yet, on the bank's vision encoder."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = SeedXTokenizer(system.tokenizer, generator=generator)
    tokenizer.vision.trunk.load_state_dict(data.vision.vit.state_dict())
    config = pretrain.Config(system, locations="smooth", base_dtype="auto", seed=seed)
    return pretrain.fresh(config, tokenizer, None, generator)


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision under `work`. Raises RebusError for adapters that do not fit."""
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    begin_projectors(whole, data, torch.Generator().manual_seed(config.seed), named=True)
    words = [Trainable(WORDS, config.word_lr)] if config.system.projectors.words is not None else []
    learning = [*words, Trainable("lm.input_projector.*", config.visual_lr)]
    return naming_stage(NAME, whole, read, data, config, learning)
