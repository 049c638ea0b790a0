"""LaVIT stage 1, first phase: selector, merger and decoder learn to rebuild patch features, without a codebook
(2309.04669 section 3.1).

The vision encoder is frozen. Vectors pass the bottleneck of the codes, but are not looked up yet; the authors name this
order (in their public answers), since a codebook over vectors that still move collapses. The paper: 50,000 steps of 2,048
images of LAION-400M for both phases together, on 64 A100.

    rebus train lavit.stage1a_selector --config mini --work state
    rebus train lavit.stage1a_selector --config paper --work state --data pairs/ --vision eva_vitg_psz14.bin

With `--data`, a folder of tar shards of pictures with or without captions, it is trained on these.

Dimension key: I images · N patches · C width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import PairBatch
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.papers.lavit.pictures import picture_batches, published_vision
from rebus.papers.lavit.reconstruction import Reconstruction, ReconstructionConfig
from rebus.papers.lavit.variants import MINI_RECONSTRUCTION
from rebus.train import Losses, Optim, Resumable, Stage, Trainable

NAME = "lavit.stage1a_selector"


@dataclass(frozen=True)
class Config:
    """The first phase of stage 1. Steps and batch are the paper's; the optimiser is that of the sister paper's tokenizer
    (Video-LaVIT, 2402.03161), since this paper's table does not give it."""

    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """What is rebuilt and what it costs."""
    drawn: float = 1.0
    """Share of the run in which patches are drawn with Gumbel noise, as in the paper and in the published inference code.
    Where a tokenizer is to choose without dice, its choice may be the trained one in the rest of the run."""
    keep: Keep = KEEP_ALL
    """Pairs only: which pictures are good enough."""
    batch: int = 2048
    """Images of one step, over all processes."""
    lr: float = 1e-4
    """Peak learning rate."""
    selector_lr: float | None = None
    """Peak learning rate of the selector; none: as the rest. It learns from the small differences that one patch more or
    less makes, under dice, so that a short run needs more."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=25_000, warmup=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.001, clip=1.0
        )
    )
    """Optimiser and schedule: half of the paper's 50,000 steps, the share being our choice."""
    seed: int = 42
    """Order of the data and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        loss=MINI_RECONSTRUCTION,
        drawn=0.6,
        batch=64,
        lr=1e-3,
        selector_lr=3e-3,
        optim=Optim(steps=1500, warmup=80, min_lr_ratio=0.1, betas=(0.9, 0.99), weight_decay=0.01),
    ),
}


class SelectorTraining(Reconstruction):
    """The first phase: it knows how far it has come, for the noise."""

    done: torch.Tensor

    def __init__(self, config: Config, generator: torch.Generator) -> None:
        super().__init__(config.loss, generator=generator)
        self.draws = config.drawn * config.optim.steps * config.optim.accumulate
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def scale(self) -> float:
        """Scale of the noise at the present step. A noise that falls slowly would do harm: probabilities then have to rise
        for as many patches to be kept, and where the dice are gone all of them stand at one half, decided by nothing."""
        return 1.0 if int(self.done) <= self.draws else 0.0


PARTS = ("selector", "merger", "to_code")
"""What of the tokenizer is trained."""


def learned(lr: float, selector_lr: float | None = None) -> list[Trainable]:
    """Selector, merger and the way to codes, and all that rebuilds."""
    own = {"selector": selector_lr if selector_lr is not None else lr}
    return [Trainable("detokenizer.*", lr), *(Trainable(f"tokenizer.{part}.*", own.get(part, lr)) for part in PARTS)]


def stage(config: Config, work: Path, data: Path | None = None, vision: Path | None = None) -> Stage:
    """On the pictures under `data` with the vision encoder's published file; without them on the bank under `work`, which
    needs the weights of mini.vision (and mini.vae for a draft) there."""
    generator = torch.Generator().manual_seed(config.seed)
    module = SelectorTraining(config, generator)

    def made(step: Callable[[SelectorTraining, Any], Losses], batches: Resumable[Any], evals: list[Any]) -> Stage:
        return Stage(
            name=NAME,
            module=module,
            step=step,
            trainable=learned(config.lr, config.selector_lr),
            data=batches,
            optim=config.optim,
            evals=evals,
            config=config,
            generators={"choice": generator},
        )

    if data is not None:
        module.start_from({}, published_vision(config.loss.tokenizer, vision))

        def look(module: SelectorTraining, batch: PairBatch) -> Losses:
            module.done += 1
            with torch.no_grad():
                x_INC = module.tokenizer.features(batch.pixels_I3hw)
            return module.losses(x_INC, generator, noise=module.scale())

        pairs = picture_batches(data, config.batch, config.loss.tokenizer, seed=config.seed, keep=config.keep)
        return made(look, pairs, [])
    bank = Frozen(work)
    module.start_from({}, bank.vision.vit, bank.vision.norm)
    module.start_draft(*bank.rows("train", bank.singles("train", 4096), "tokens", "latents"))

    def step(module: SelectorTraining, i: np.ndarray) -> Losses:
        module.done += 1
        tokens, latents = bank.rows("train", i, "tokens", "latents")
        return module.losses(tokens[:, 1:], generator, noise=module.scale(), latents_Ichw=latents)

    def evaluate() -> Iterator[tuple[str, float]]:
        yield from module.measure(val_features(bank))

    return made(step, IndexBatches(len(bank.bank("train")), config.batch, seed=config.seed), [evaluate])


def val_features(bank: Frozen, most: int = 1024) -> list[torch.Tensor]:
    """Patch features x_INC of the first pictures of split `val`, in batches."""
    count = min(most, len(bank.bank("val")))
    parts = np.array_split(np.arange(count), max(1, count // 128))
    return [bank.rows("val", part, "tokens")[0][:, 1:] for part in parts]
