"""After alignment: the whole language model learns to say what a picture shows (ours; mini only).

As `rebus.papers.seed.stages.naming`, for an image that goes in as vectors.

    rebus train lavit.naming --config mini --work state

Dimension key: I images · N patches · C width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from rebus.mini.align import VectorNaming
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, named_stage, patches, read_stage
from rebus.papers.lavit.language_training import LanguageTraining
from rebus.papers.lavit.stages.align import fresh, image_vectors
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Losses, Stage, Trainable


@dataclass(frozen=True)
class Config(NamedConfig):
    """How names are learned."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    visual_lr: float = 5e-4
    """Peak learning rate of the projector."""


CONFIGS = {"mini": Config()}


class Naming(nn.Module):
    """The language model with its projector, and the names that it is to say."""

    def __init__(self, whole: LanguageTraining, names: list[str], last: int) -> None:
        super().__init__()
        self.last = last
        self.lm, self.tokenizer = whole.lm, whole.tokenizer
        grammar = whole.grammar
        self.naming = VectorNaming(grammar.text, grammar.config.begin_image, grammar.config.end_image, names)

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        return self.naming(self.lm.llm, image_vectors(self.lm, self.tokenizer, x_INC, self.last), name_I)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `lavit.align` needs, and its weights under `work`."""
    data = Frozen(work)
    whole = fresh(config.system, data, config.seed)
    read_stage(whole, work / "lavit.align")
    module = Naming(whole, load_named(work, "train").names, config.last)
    trainable = [Trainable("lm.input_projector.*", config.visual_lr), Trainable("lm.llm.*lora_*", config.lr)]
    return named_stage("lavit.naming", module, patches(data, config), config, trainable, most=256)
