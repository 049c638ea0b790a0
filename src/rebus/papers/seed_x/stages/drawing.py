"""After naming: the upper layers of the language model learn what things look like by name (ours; mini only).

As `rebus.papers.seed.stages.drawing`, for an image that comes out as features: nothing in a wish and its slots depends on the
picture, so that the lower layers' states are computed once for all of it.

    rebus train seed_x.drawing --config mini --work state

Dimension key: I pictures · N patches · S slots · C visual width · L length · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.data.pictures import Pictures, load_pictures
from rebus.document import Document, Image, assistant, user
from rebus.mini.frozen import Frozen, named_tokens, take
from rebus.mini.named import load_named
from rebus.mini.named_stage import read_stage
from rebus.mini.vector_stages import vector_naming
from rebus.mini.wishes import DrawingConfig, LowerStates, Wishes, drawing_stage, last_states
from rebus.papers.seed_x.beginnings import begin_way_out, fit_drawings
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language_training import SAID, LanguageTraining
from rebus.papers.seed_x.projectors import SeedXOutputProjector
from rebus.papers.seed_x.stages import naming
from rebus.papers.seed_x.variants import MINI, SeedXConfig
from rebus.papers.seed_x.vision import pool_rows
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Features

NAME = "seed_x.drawing"


@dataclass(frozen=True)
class Config(DrawingConfig):
    """How drawing is begun."""

    system: SeedXConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    last: int = 64
    """Last vectors of an image that is named; here all of them."""
    visual_lr: float = 1e-3
    """Peak learning rate of the way out."""
    word_lr: float = 1e-6
    """Peak learning rate of what draws from words, where the system has that: so low that it stays as it was fitted to pictures."""


CONFIGS = {
    "mini": Config(
        optim=Optim(steps=300, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


def words(wishes: Wishes, number: int, grammar: SeedXGrammar, width: int) -> list[int]:
    """The words of a wish, the mark that begins the image, and its slots."""
    blank = Features(torch.zeros(1, grammar.config.slots, width), grammar.source)
    row = grammar.serialize(Document((user(wishes.text(number)), assistant(Image(generated=blank)))), template="chat")
    return row.ids[: row.output_spans[0][1]]


class Drawing(nn.Module):
    """The language model with its way out, what it is to draw and what to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.config = whole.lm, whole.tokenizer, config
        self.naming = vector_naming(whole.grammar, names)

    def forward(
        self, states: Sequence[Tensor], x_ISC: Tensor, said_IK: Tensor, named_INC: Tensor, name_I: Tensor
    ) -> Losses:
        """The lower layers' states of wishes, [L, D] each, the features of their pictures and the places of the words that they are drawn
        from (none where they are not drawn from words); patches of images to be named, and their names."""
        lm, config = self.lm, self.config
        assert isinstance(lm.output_projector, SeedXOutputProjector)
        hidden_ISD = last_states(lm.llm, config.depth, states, x_ISC.shape[1])
        drawn = lm.output_projector.loss(hidden_ISD.flatten(0, 1), [Features(x_ISC, lm.output_projector.source)])
        vectors = [x_SD[-config.last :] for x_SD in naming.read(lm, self.tokenizer, named_INC.to(lm.llm.device))]
        named = self.naming(lm.llm, vectors, name_I)
        total = lm.image_weight * drawn + config.naming_weight * named.total
        parts = {"drawing": drawn, "naming": named.total, **named.parts}
        if (words := lm.output_projector.words) is not None:
            nats, right = words.saying(hidden_ISD[:, : words.config.words], said_IK.to(hidden_ISD.device))
            total = total + config.saying_weight * nats
            parts |= {"saying": nats, "wished": right}
        return Losses(total, parts)


@dataclass(frozen=True)
class Seen:
    """A split: wishes with what the lower layers make of them, and what the vision encoder says of pictures, with their names."""

    wishes: Wishes
    states: LowerStates
    tokens: np.ndarray
    name_I: Tensor
    pooled: int
    said_IK: Tensor

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`; beside them as many pictures as are to be `named`, any of them."""
        drawn_INC = take(self.tokens, i % len(self.wishes.rows))[:, 1:]
        which = np.random.default_rng(int(i[0])).integers(len(self.tokens), size=named)
        named_INC, name_I = take(self.tokens, which)[:, 1:], self.name_I[torch.from_numpy(which)]
        said_IK = self.said_IK[torch.from_numpy(i % len(self.wishes.rows))]
        return learning([self.states[k] for k in i], pool_rows(drawn_INC, self.pooled), said_IK, named_INC, name_I)


def seen(work: Path, split: str, whole: LanguageTraining, pictures: Pictures, data: Frozen, config: Config) -> Seen:
    """What is learned from, or measured; what draws from words must have been fitted to them."""
    wishes = Wishes(pictures, split, config.wordings)
    tokens, name_I, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
    rows = [words(wishes, k, whole.grammar, tokens.shape[2]) for k in range(len(wishes))]
    states = LowerStates(whole.lm.llm, rows, config.depth, work / "cache" / f"seed_x_wishes.{split}.npy")
    assert isinstance(whole.lm.output_projector, SeedXOutputProjector)
    said_IK = torch.zeros(len(wishes.rows), 0, dtype=torch.int64)
    if (draws := whole.lm.output_projector.words) is not None:
        said_IK = draws.places(wishes.said(whole.grammar.text, draws.config.words))
    return Seen(wishes, states, tokens, name_I, config.system.tokenizer.pooled, said_IK)


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed_x.naming` needs, and its weights under `work`. Raises RebusError where no layer is left to learn, or nothing
    is to be named or wished for."""
    data, pictures = Frozen(work), load_pictures(work / "emoji")
    whole = naming.fresh(config.system, data, config.seed)
    layers = len(whole.lm.llm.base.base_model.layers)
    config.check(layers)
    generator = torch.Generator().manual_seed(config.seed)
    begin_way_out(whole, data, generator)
    read_stage(whole, work / "seed_x.naming")
    fit_drawings(whole, data, Wishes(pictures, "train", 1), generator)
    module = Drawing(whole, load_named(work, "train").names, config)
    said = [Trainable(SAID, config.word_lr)] if config.system.projectors.says is not None else []
    trainable = [
        *said,
        Trainable("lm.output_projector.*", config.visual_lr),
        *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.depth, layers)),
    ]
    return drawing_stage(
        NAME, module, lambda split: seen(work, split, whole, pictures, data, config), work, config, trainable
    )
