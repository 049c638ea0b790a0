"""`align` and `naming` of the papers whose images go into the language model as vectors: what differs is how they are read.

Dimension key: I images · N patches · C width · D language-model width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from rebus.lm import InterleavedLM
from rebus.mini.align import AlignConfig, VectorAlignment, VectorNaming
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import ALIGN_OPTIM, NamedConfig, lend_adapters, named_stage, patches, read_stage
from rebus.train import Losses, Optim, Stage, Trainable


class Whole(Protocol):
    """A paper's language model in training."""

    lm: InterleavedLM
    tokenizer: Any
    """a module that learns nothing"""
    grammar: Any
    """with its text tokenizer, and the marks around images in its config"""


Read = Callable[[InterleavedLM, Any, Tensor], list[Tensor]]
"""What a language model behind a tokenizer reads of images of these patches [I, N, C]: its vectors, [T, D] of each."""


@dataclass(frozen=True)
class VectorAlignConfig(NamedConfig):
    """How reading is begun."""

    batch: int = 192
    """Images of one step."""
    lr: float = 2e-3
    """Peak learning rate of the adapters of the lower layers."""
    optim: Optim = field(default_factory=lambda: ALIGN_OPTIM)
    """Optimiser and schedule."""
    last: int = 64
    """Last vectors of an image that are there; here all of them, as later. (Taught with the last 8, which are means of all, lavit:mini named
    30 % of 128 trained pictures by 8 vectors and 18 % by all.)"""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    visual_lr: float = 1e-3
    """Peak learning rate of the way in."""
    part_lr: float = 1e-5
    """Peak learning rate of what reads images by part, where something does. (At ten times this rate, what had been fitted to names was
    lost: after 40 steps seed_x:mini told 15 % of pictures by name, so 24 %.)"""
    adapters: str | None = None
    """Whose adapters these begin with, after names were read without: a saved system's folder, or the name of embedded weights;
    none: those that change nothing. One that has learned to say what it reads need not learn it again."""


@dataclass(frozen=True)
class VectorNamingConfig(NamedConfig):
    """How names are learned."""

    last: int = 64
    """As in `VectorAlignConfig`."""
    visual_lr: float = 5e-4
    """Peak learning rate of the way in."""
    part_lr: float = 1e-5
    """As in `VectorAlignConfig`."""
    adapters: str | None = None
    """As in `VectorAlignConfig`, for the layers that alignment left as they were."""


class VectorTask(nn.Module):
    """The language model with its way in and the tokenizer before it, and what is to be made of images, of which the `last`
    vectors are there."""

    def __init__(self, whole: Whole, read: Read, task: VectorAlignment | VectorNaming, last: int) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.task = whole.lm, whole.tokenizer, task
        self.read, self.last = read, last

    def vectors(self, x_INC: Tensor) -> list[Tensor]:
        """What the language model reads of images of these patches, [T, D] of each."""
        return [x_TD[-self.last :] for x_TD in self.read(self.lm, self.tokenizer, x_INC.to(self.lm.llm.device))]

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        return self.task(self.lm.llm, self.vectors(x_INC), name_I)


def way_in(whole: Whole, config: VectorAlignConfig | VectorNamingConfig) -> list[Trainable]:
    """How the projector learns: the layers that read an image by part at a rate of their own, as they begin by a fit to names."""
    by_part = getattr(whole.lm.input_projector, "parts", None) is not None
    parts = [Trainable("lm.input_projector.parts.*", config.part_lr)] if by_part else []
    return [*parts, Trainable("lm.input_projector.*", config.visual_lr)]


def align_stage(name: str, whole: Whole, read: Read, data: Frozen, config: VectorAlignConfig) -> Stage:
    """`align`: the way in and the adapters of the lower layers learn. Raises RebusError where more places are compared than
    are there, or adapters that do not fit were named."""
    config.align.check(config.last)
    llm, grammar = whole.lm.llm, whole.grammar
    names = load_named(data.work, "train").names
    task = VectorAlignment(llm, grammar.text, grammar.config.begin_image, names, config.align)
    if config.adapters is not None:
        lend_adapters(llm, config.adapters)
    trainable = [
        *way_in(whole, config),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
    ]
    return named_stage(name, VectorTask(whole, read, task, config.last), patches(data, config), config, trainable)


def vector_naming(grammar: Any, names: list[str]) -> VectorNaming:
    """The task of naming images that go in as vectors."""
    return VectorNaming(grammar.text, grammar.config.begin_image, grammar.config.end_image, names)


def naming_stage(
    name: str, whole: Whole, read: Read, data: Frozen, config: VectorNamingConfig, *, aligned: str
) -> Stage:
    """`naming`: the way in and all adapters learn, from what the stage `aligned` left. Raises RebusError where there is nothing."""
    if config.adapters is not None:
        lend_adapters(whole.lm.llm, config.adapters)
    task = vector_naming(whole.grammar, load_named(data.work, "train").names)
    trainable = [*way_in(whole, config), Trainable("lm.llm.*lora_*", config.lr)]
    module = VectorTask(whole, read, task, config.last)
    read_stage(module, data.work / aligned)  # over the lower layers' adapters, which alignment has changed
    return named_stage(name, module, patches(data, config), config, trainable, most=256)
