"""Stages of training over pictures of one thing with their names: `naming` of every paper.

Dimension key: I images · S patches and the class token · C width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.checkpoint import load_system
from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen, named_tokens
from rebus.nn.text_model import TextModel
from rebus.packages import embedded
from rebus.train import Losses, Optim, Stage, Trainable


@dataclass(frozen=True)
class NamedConfig:
    """What all these stages are told; the defaults are those of `naming`."""

    copies: int = 4
    """How often each picture is there: as it is, and moved, turned and tinted."""
    batch: int = 64
    """Images of one step."""
    last: int = 8
    """Last words or vectors of an image that are there. Read as running sums or means they say all, and the others would be
    most of the work."""
    lr: float = 1e-3
    """Peak learning rate of the language model's adapters."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=500, warmup=0.05, min_lr_ratio=0.1, betas=(0.9, 0.95), weight_decay=0.01)
    )
    """Optimiser and schedule."""
    seed: int = 42
    """Order of the images and initial weights."""

    def __post_init__(self) -> None:
        if min(self.last, self.copies) < 1:
            raise RebusError(
                f"Of an image the last {self.last} words or vectors were to be there, and each picture {self.copies} times. "
                "Give `--last` and `--copies` at least 1."
            )


Seen = Callable[[str], tuple[np.ndarray, Tensor]]
"""Of a split: what the module is given of each image, and the place of its name in the list of names."""


def patches(data: Frozen, config: NamedConfig) -> Seen:
    """The vision encoder's patches of named pictures, [I, S − 1, C]; those of other splits than training's as they are."""

    def seen(split: str) -> tuple[np.ndarray, Tensor]:
        tokens, name_I, _ = named_tokens(data, split, copies=config.copies if split == "train" else 1)
        return tokens[:, 1:], name_I

    return seen


def named_stage(
    name: str, module: nn.Module, seen: Seen, config: NamedConfig, trainable: list[Trainable], *, most: int = 512
) -> Stage:
    """`module` takes what is `seen` of images and their names, and returns losses; the first `most` images of a split are
    measured."""
    images, name_I = seen("train")

    def losses(module: nn.Module, some: np.ndarray, name_I: Tensor) -> Losses:
        x = torch.from_numpy(np.array(some))
        return module(x.float() if x.is_floating_point() else x, name_I)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            measured, names_I = seen(split)
            if len(names_I):
                of = losses(module, measured[:most], names_I[:most])
                for figure, value in {"loss": of.total, **of.parts}.items():
                    yield f"{split}/{figure}", float(value)

    return Stage(
        name=name,
        module=module,
        step=lambda module, i: losses(module, images[i], name_I[i]),
        trainable=trainable,
        data=IndexBatches(len(name_I), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )


def read_stage(module: nn.Module, folder: Path) -> None:
    """Lays what one of these stages left in `folder` over the module. Raises RebusError where it has not been run, or for another
    model."""
    file = folder / "weights.safetensors"
    if not file.exists():
        raise RebusError(f"There is no {file}, from which this goes on. Run `rebus train {folder.name}` first.")
    left, ours = load_file(file), module.state_dict()
    wrong = sorted(name for name, x in left.items() if name not in ours or ours[name].shape != x.shape)
    if wrong:
        raise RebusError(
            f"The weights in {folder} are of another model: {len(wrong)} of their {len(left)} tensors do not fit "
            f"({', '.join(wrong[:3])}). Run `rebus train {folder.name}` again for this one."
        )
    module.load_state_dict(left, strict=False)


def lend_adapters(llm: TextModel, lender: str) -> None:
    """Begins a language model's adapters as those of a saved system with the same base model: `lender` is a folder, or the
    name of embedded weights. Adapters of a smaller rank fill the first rows and columns; the others add nothing yet (both are to have the
    same scale, alpha by rank). Raises RebusError where there is none, or its adapters have other shapes."""
    folder = Path(lender)
    held = load_system(folder if (folder / "system.json").exists() else embedded(lender)).tensors("lm")
    lent = {name.removeprefix("llm."): name for name in held if ".lora_" in name}
    ours = {name: x for name, x in llm.state_dict().items() if ".lora_" in name}
    wrong = sorted(name for name in lent.keys() | ours if name not in ours or name not in lent)
    wrong = wrong or sorted(
        name for name, theirs in lent.items() if not _fits(held.meta[theirs].shape, ours[name].shape)
    )
    if wrong or not ours:
        raise RebusError(
            f"The adapters of {lender} do not fit this language model: it has {len(ours)} tensors of adapters, they are "
            f"{len(lent)}, and {len(wrong)} differ ({', '.join(wrong[:3])}). Name a system with the same base model and no higher rank."
        )
    for name, theirs in lent.items():
        x = held[theirs].float()
        if ".lora_B" in name:
            ours[name].zero_()
        ours[name][: x.shape[0], : x.shape[1]] = x


def _fits(theirs: torch.Size, ours: torch.Size) -> bool:
    return len(theirs) == len(ours) and all(a <= b for a, b in zip(theirs, ours, strict=True))
