"""A stage of training over pictures of one thing, of which the vision encoder's patches and the name are given.

Dimension key: I images · N patches · S patches and the class token · C width
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rebus.mini.align import measured
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, named_tokens
from rebus.train import Losses, Optim, Stage, Trainable


class NamedConfig(Protocol):
    """What of a stage's config is about its batches."""

    @property
    def copies(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def optim(self) -> Optim: ...
    @property
    def seed(self) -> int: ...


def named_stage(
    name: str, module: nn.Module, data: Frozen, config: NamedConfig, trainable: list[Trainable], *, most: int = 512
) -> Stage:
    """`module` takes patches x_INC and a place in the list of names for each image; `most` images of a split are measured."""
    tokens, name_I, _ = named_tokens(data, "train", copies=config.copies)

    def losses(x_ISC: np.ndarray, name_I: Tensor) -> Losses:
        return module(torch.from_numpy(np.array(x_ISC[:, 1:])).float(), name_I)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            seen, name_I, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
            yield from measured(split, seen, name_I, losses, most)

    return Stage(
        name=name,
        module=module,
        step=lambda module, i: losses(tokens[i], name_I[i]),
        trainable=trainable,
        data=IndexBatches(len(name_I), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
