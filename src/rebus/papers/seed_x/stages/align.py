"""Before pre-training: images of one thing are read as their names are, in the lower layers of the language model (ours; mini
only).

As `rebus.papers.seed.stages.align`, of which this is the same for an image that goes in as vectors: the way in learns beside the
lower layers' adapters.

    rebus train seed_x.align --config mini --work state

Dimension key: I images · N patches · S patches and the class token · C width
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.mini.align import AlignConfig, VectorAlignment, measured
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, named_tokens
from rebus.papers.seed_x.beginnings import begin_projectors
from rebus.papers.seed_x.language_training import LanguageTraining
from rebus.papers.seed_x.projectors import SeedXInputProjector
from rebus.papers.seed_x.stages import pretrain
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import MINI, SeedXConfig
from rebus.papers.seed_x.views import positions
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Features

NAME = "seed_x.align"


@dataclass(frozen=True)
class Config:
    """How reading is begun."""

    system: SeedXConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """What is compared."""
    copies: int = 4
    """How often each picture is there: as it is, and moved, turned and tinted."""
    batch: int = 128
    """Images of one step."""
    lr: float = 2e-3
    """Peak learning rate of the adapters of the lower layers."""
    visual_lr: float = 1e-3
    """Peak learning rate of the way in."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=600, warmup=0.05, min_lr_ratio=0.02, betas=(0.9, 0.95), weight_decay=0.01)
    )
    """Optimiser and schedule."""
    seed: int = 42
    """Order of the images and initial weights."""


CONFIGS = {"mini": Config()}


class Alignment(nn.Module):
    """The language model with its ways in and out."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: AlignConfig) -> None:
        super().__init__()
        self.lm = whole.lm
        grammar = whole.grammar
        self.aligned = VectorAlignment(whole.lm.llm, grammar.text, grammar.config.begin_image, names, config)

    def vectors(self, x_INC: Tensor) -> list[Tensor]:
        """What the language model reads of images of these patches, each one view: [slots, D] each."""
        projector, where_W2 = self.lm.input_projector, positions(None)
        assert isinstance(projector, SeedXInputProjector)
        read_TD = projector([Features(x_NC[None], "", where_W2) for x_NC in x_INC])
        return list(read_TD.chunk(len(x_INC)))

    def forward(self, x_INC: Tensor, name_I: Tensor) -> Losses:
        """Patches of images, and which name each has."""
        llm = self.lm.llm
        return self.aligned(llm, self.vectors(x_INC.to(llm.device)), name_I)


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision under `work`."""
    generator = torch.Generator().manual_seed(config.seed)
    data = Frozen(work)
    tokenizer = SeedXTokenizer(config.system.tokenizer, generator=generator)
    tokenizer.vision.trunk.load_state_dict(data.vision.vit.state_dict())
    begun = pretrain.Config(config.system, locations="smooth", base_dtype="bf16", seed=config.seed)
    whole = pretrain.fresh(begun, tokenizer, None, generator)
    begin_projectors(whole, data, generator, named=True)
    tokens, name_I, names = named_tokens(data, "train", copies=config.copies)
    module = Alignment(whole, names, config.align)

    def as_patches(x_ISC: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(x_ISC[:, 1:])).float()

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            seen, name, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
            yield from measured(split, seen, name, lambda x, name_I: module(as_patches(x), name_I))

    return Stage(
        name=NAME,
        module=module,
        step=lambda module, i: module(as_patches(tokens[i]), name_I[i]),
        trainable=[
            Trainable("lm.input_projector.*", config.visual_lr),
            *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.align.depth)),
        ],
        data=IndexBatches(len(name_I), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
