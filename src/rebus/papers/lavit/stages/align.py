"""Before stage 2: images of one thing are read as their names are, in the lower layers of the language model (ours; mini only).

As `rebus.papers.seed.stages.align`, of which this is the same for an image that goes in as vectors: the projector learns beside
the lower layers' adapters.

    rebus train lavit.align --config mini --work state

Dimension key: I images · N patches · S patches and the class token · T kept patches of all images ·
C width · D language-model width
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
from rebus.papers.lavit.bank import bank_tokenizer
from rebus.papers.lavit.language_training import LanguageTraining, begin
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.stages.stage2_language import start_projector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Losses, Stage, Trainable

NAME = "lavit.align"


@dataclass(frozen=True)
class Config(NamedConfig):
    """How reading is begun."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    visual_lr: float = 1e-3
    """Peak learning rate of the projector."""
    adapters: str | None = None
    """Whose adapters these begin with, after names were read without: a saved system's folder, or the name of embedded weights;
    none: those that change nothing. One that has learned to say what it reads need not learn it again."""


CONFIGS = {"mini": Config(batch=192, adapters="seed-mini", lr=2e-3, optim=ALIGN_OPTIM)}


class Alignment(nn.Module):
    """The language model with its projector, and the tokenizer that chooses patches."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: AlignConfig, last: int) -> None:
        super().__init__()
        self.last = last
        self.lm, self.tokenizer = whole.lm, whole.tokenizer
        grammar = whole.grammar
        self.aligned = VectorAlignment(whole.lm.llm, grammar.text, grammar.config.begin_image, names, config)

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        return self.aligned(self.lm.llm, image_vectors(self.lm, self.tokenizer, x_INC, self.last), name_I)


def image_vectors(lm: InterleavedLM, tokenizer: LavitTokenizer, x_INC: Tensor, last: int) -> list[Tensor]:
    """What the language model reads of images of these patches, the `last` vectors of each, [T, D]."""
    projector = lm.input_projector
    assert isinstance(projector, LavitInputProjector)
    x_INC = x_INC.to(lm.llm.device)
    keep_IN = tokenizer.keep(x_INC)
    return [x_TD[-last:] for x_TD in projector.read(x_INC, keep_IN).split(keep_IN.sum(1).tolist())]


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
        base_dtype="bf16",
        generator=torch.Generator().manual_seed(seed),
    )


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision and both phases of stage 1 under `work`. Raises RebusError where more
    places are compared than are there."""
    config.align.check(config.last)
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    start_projector(whole, data, named=True)
    module = Alignment(whole, load_named(work, "train").names, config.align, config.last)
    if config.adapters is not None:
        lend_adapters(whole.lm.llm, config.adapters)
    trainable = [
        Trainable("lm.input_projector.*", config.visual_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
    ]
    return named_stage(NAME, module, patches(data, config), config, trainable)
