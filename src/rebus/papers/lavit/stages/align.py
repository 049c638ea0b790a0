"""Before stage 2: images of one thing are read as their names are, in the lower layers of the language model (ours; mini only).

As `rebus.papers.seed.stages.align`, of which this is the same for an image that goes in as vectors: the projector learns beside
the lower layers' adapters.

    rebus train lavit.align --config mini --work state

Dimension key: I images · N patches · T kept patches of all images · C width · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rebus.lm import InterleavedLM
from rebus.mini.frozen import Frozen
from rebus.mini.vector_stages import VectorAlignConfig, align_stage
from rebus.papers.lavit.bank import bank_tokenizer
from rebus.papers.lavit.language_training import LanguageTraining, begin
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.stages.stage2_language import start_projector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Stage

NAME = "lavit.align"


@dataclass(frozen=True)
class Config(VectorAlignConfig):
    """How reading is begun."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""


CONFIGS = {"mini": Config(adapters="seed-mini")}


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
    """Needs `work/emoji`, and the weights of mini.vision and both phases of stage 1 under `work`. Raises RebusError where more
    places are compared than are there."""
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    start_projector(whole, data, named=True)
    return align_stage(NAME, whole, read, data, config)
