"""Before stage 2: the language model learns to say what a picture shows (ours; mini only).

As `rebus.papers.seed.stages.naming`, for an image that goes in as vectors, of which the last are words that were fitted to names
(`rebus.nn.word_readings`): what is left to learn is to say them.

    rebus train lavit.naming --config mini --work state

Dimension key: I images · N patches · C width · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rebus.lm import InterleavedLM
from rebus.mini.frozen import Frozen
from rebus.mini.vector_stages import VectorNamingConfig, naming_stage
from rebus.papers.lavit.bank import bank_tokenizer
from rebus.papers.lavit.language_training import LanguageTraining, begin, way_in
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.stages.stage2_language import start_projector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Optim, Stage

NAME = "lavit.naming"


@dataclass(frozen=True)
class Config(VectorNamingConfig):
    """How names are learned."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""


CONFIGS = {
    "mini": Config(
        adapters="seed-mini",
        batch=32,
        optim=Optim(steps=150, warmup=0.05, min_lr_ratio=0.1, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


def read(lm: InterleavedLM, tokenizer: LavitTokenizer, x_INC: Tensor) -> list[Tensor]:
    """What the language model reads of images of these patches, [T, D] of each."""
    projector = lm.input_projector
    assert isinstance(projector, LavitInputProjector)
    keep_IN = tokenizer.keep(x_INC)
    return list(projector.read(x_INC, keep_IN).split(keep_IN.sum(1).tolist()))


def fresh(system: LavitConfig, data: Frozen, seed: int) -> LanguageTraining:
    """The language model that has learned nothing yet, on the bank's tokenizer."""
    return begin(
        system,
        bank_tokenizer(system.tokenizer, data),
        template="plain",
        loss="reply",
        pack=None,
        visual_loss=False,
        selection="expected",
        base_dtype="auto",
        generator=torch.Generator().manual_seed(seed),
    )


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision and both phases of stage 1 under `work`. Raises RebusError for adapters that
    do not fit."""
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    start_projector(whole, data, named=True)
    return naming_stage(NAME, whole, read, data, config, way_in(config.system, config.visual_lr, config.word_lr))
