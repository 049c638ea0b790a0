"""Before stage 3: images of one thing are read as their names are, in the lower layers of the language model (ours; mini only).

The papers learn to read from a hundred million captions. Of the few ten thousand that the mini has, its language model
learned to describe the pictures it was shown and little else: most of what it was taught was how to speak of pictures, not
what they show. What they show is taught here first, at a fifth of the price.

    rebus train seed.align --config mini --work state

Dimension key: I images · N codes of an image · P places · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.mini.align import AlignConfig, NameStates, begun, lower, vector_states
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import ALIGN_OPTIM, NamedConfig, named_stage
from rebus.nn.text_model import TextModel
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, start_rows, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Stage, Trainable


@dataclass(frozen=True)
class Config(NamedConfig):
    """How reading is begun."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    row_lr: float = 3e-4
    """Peak learning rate of the codes' rows."""


CONFIGS = {"mini": Config(batch=256, lr=2e-3, optim=ALIGN_OPTIM)}


class Alignment(nn.Module):
    """The lower layers of the language model, and the states that they are to give of images."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: AlignConfig, last: int) -> None:
        super().__init__()
        self.last = last
        self.lm = whole.lm
        self.grammar = whole.grammar.config
        text = whole.grammar.text
        self.states = NameStates(whole.lm.llm, text, names, config)
        self.before = nn.Buffer(torch.tensor([*begun(text), self.grammar.begin_image]), persistent=False)

    def read(self, ids_IN: Tensor) -> Tensor:
        """States of the last places of images of these codes, [I, P, D]."""
        config = self.states.config
        x_ILD, places_L = image_vectors(self.lm.llm, self.before, ids_IN + self.grammar.first_code, self.last)
        return vector_states(lower(self.lm.llm, config.depth), x_ILD, places_L)[:, -config.places :]

    def forward(self, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        states_IPD = self.read(ids_IN)
        return self.states(states_IPD, name_I.to(states_IPD.device))


def image_vectors(llm: TextModel, before_B: Tensor, words_IN: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """What the language model reads of images of these words and of what stands `before` them, of the codes the `last` alone:
    vectors [I, L, D] and the places [L] that they have."""
    words_IL = torch.cat([before_B.expand(len(words_IN), -1), words_IN.to(before_B.device)], 1)
    left_out = max(0, words_IN.shape[1] - last)
    places_L = torch.arange(words_IL.shape[1], device=before_B.device)
    places_L = places_L[(places_L < len(before_B)) | (places_L >= len(before_B) + left_out)]
    return llm.embed(words_IL)[:, places_L], places_L


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision and SEED's stages 1 and 2 under `work`. Raises RebusError where more
    places are compared than there are codes."""
    config.align.check(config.last)
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="plain", loss="reply", pack=None, base_dtype="auto")
    start_rows(whole, work, named=True)
    data = Frozen(work)

    def seen(split: str) -> tuple[np.ndarray, Tensor]:
        copies = config.copies if split == "train" else 1
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=copies)
        return ids_IN.numpy(), name_I

    names = load_named(work, "train").names
    module = Alignment(whole, names, config.align, config.last)
    trainable = [
        Trainable("lm.llm.rows.*", config.row_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
    ]
    return named_stage("seed.align", module, seen, config, trainable)
