"""`naming` of the papers whose images go into the language model as vectors: what differs is how they are read.

Dimension key: I images · N patches · C width · D language-model width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from rebus.lm import InterleavedLM
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, lend_adapters, named_stage, patches
from rebus.mini.saying import VectorNaming
from rebus.train import Losses, Stage, Trainable


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
class VectorNamingConfig(NamedConfig):
    """How names are learned."""

    last: int = 64
    """Last vectors of an image that are there; here all of them, as later. (Taught with the last 8, lavit:mini named 30 % of 128
    trained pictures by 8 vectors and 18 % by all.)"""
    visual_lr: float = 5e-4
    """Peak learning rate of the way in."""
    word_lr: float = 1e-6
    """Peak learning rate of what reads images as words, where something does: so low that it stays as it was fitted to names."""
    adapters: str | None = None
    """Whose adapters these begin with: a saved system's folder, or the name of embedded weights; none: those that change nothing.
    One that has learned to say what it reads need not learn it again."""


class VectorTask(nn.Module):
    """The language model with its way in and the tokenizer before it, and what is to be made of images, of which the `last`
    vectors are there."""

    def __init__(self, whole: Whole, read: Read, task: VectorNaming, last: int) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.task = whole.lm, whole.tokenizer, task
        self.read, self.last = read, last

    def vectors(self, x_INC: Tensor) -> list[Tensor]:
        """What the language model reads of images of these patches, [T, D] of each."""
        return [x_TD[-self.last :] for x_TD in self.read(self.lm, self.tokenizer, x_INC.to(self.lm.llm.device))]

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        return self.task(self.lm.llm, self.vectors(x_INC), name_I)


def vector_naming(grammar: Any, names: list[str]) -> VectorNaming:
    """The task of naming images that go in as vectors."""
    return VectorNaming(grammar.text, grammar.config.begin_image, grammar.config.end_image, names)


def naming_stage(
    name: str, whole: Whole, read: Read, data: Frozen, config: VectorNamingConfig, way_in: list[Trainable]
) -> Stage:
    """`naming`: the way in, whose parts learn as `way_in` says, and all adapters learn. Raises RebusError for adapters that do not fit."""
    if config.adapters is not None:
        lend_adapters(whole.lm.llm, config.adapters)
    task = vector_naming(whole.grammar, load_named(data.work, "train").names)
    trainable = [*way_in, Trainable("lm.llm.*lora_*", config.lr)]
    module = VectorTask(whole, read, task, config.last)
    return named_stage(name, module, patches(data, config), config, trainable, most=256)
