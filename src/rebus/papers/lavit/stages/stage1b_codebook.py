"""LaVIT stage 1, second phase: the codebook is switched on, and merger and decoder go on with it (2309.04669 section 3.1).

It begins with k-means centres and follows the running means of what is assigned to its rows, which keep length 1. The
selector stays as the first phase left it. The authors report a reconstruction loss near 0.18 at the end and no collapse;
others who tried saw most codes unused, so rows that nothing hits are moved onto data here.

    rebus train lavit.stage1b_codebook --config mini --work state
    rebus train lavit.stage1b_codebook --config paper --work state --data pairs/ --vision eva_vitg_psz14.bin

With `--data`, a folder of tar shards of pictures with or without captions, it is trained on these.

Dimension key: I images · N patches · T kept patches of all images · E code width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import PairBatch
from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.nn.quantize import UnitQuantizer
from rebus.papers.lavit.pictures import picture_batches, published_vision
from rebus.papers.lavit.reconstruction import Reconstruction, ReconstructionConfig, stage_weights
from rebus.papers.lavit.stages import stage1a_selector
from rebus.papers.lavit.stages.stage1a_selector import learned, val_features
from rebus.papers.lavit.variants import MINI_RECONSTRUCTION
from rebus.train import Losses, Optim, Resumable, Stage, Trainable

NAME = "lavit.stage1b_codebook"


@dataclass(frozen=True)
class Config:
    """The second phase of stage 1; what the paper leaves open is taken from BEiT v2's tokenizer (2208.06366), whose names
    the published files bear, and the optimiser from Video-LaVIT (2402.03161)."""

    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    """What is rebuilt and what it costs."""
    decay: float = 0.99
    """Decay of the running means that the codebook follows, for each step. BEiT v2's; Video-LaVIT says 0.995."""
    commitment: float = 1.0
    """Weight of the vectors' squared distance from their codes. Equation 4 has no such term, BEiT v2 has 1."""
    kmeans: bool = True
    """Start the codebook from k-means centres of the first batches (the authors' public answer)."""
    revive_every: int = 50
    """Steps after which rows that are hardly hit are moved onto data; 0 never. Not in the paper; see above."""
    revive_below: float = 0.03
    """Hits in a batch of late, below which a row counts as hardly hit."""
    train_selector: bool = False
    """Whether the selector goes on learning. The authors' answers disagree: frozen in one, all end to end in another."""
    noise: float = 1.0
    """Scale of the Gumbel noise of the choice, what the first phase ended with; 0 is the tokenizer's choice without dice."""
    keep: Keep = KEEP_ALL
    """Pairs only: which pictures are good enough."""
    batch: int = 2048
    """Images of one step, over all processes."""
    lr: float = 1e-4
    """Peak learning rate."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=25_000, warmup=0.05, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.001, clip=1.0
        )
    )
    """Optimiser and schedule: the other half of the paper's 50,000 steps."""
    seed: int = 42
    """Order of the data, k-means and revival."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        loss=MINI_RECONSTRUCTION,
        noise=0.0,
        batch=96,
        lr=8e-4,
        optim=Optim(steps=1000, warmup=40, min_lr_ratio=0.02, betas=(0.9, 0.99), weight_decay=0.01),
    ),
}


class CodebookTraining(Reconstruction):
    """The second phase: rows that are hardly hit are moved now and then."""

    done: Tensor

    def __init__(self, config: Config, generator: torch.Generator) -> None:
        size, width = config.loss.tokenizer.codebook_size, config.loss.tokenizer.code_width
        if config.loss.decoder.code_width != width:
            raise RebusError(
                f"Codes are {width} numbers wide in the tokenizer, but {config.loss.decoder.code_width} in the decoder. "
                "Use the configs of one variant."
            )
        quantizer = UnitQuantizer(size, width, beta=config.commitment, decay=config.decay, generator=generator)
        super().__init__(config.loss, quantizer=quantizer, selector_learns=config.train_selector, generator=generator)
        self.own, self.generator = config, generator
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    @property
    def codebook(self) -> UnitQuantizer:
        """The codebook in training."""
        assert isinstance(self.tokenizer.quantizer, UnitQuantizer)
        return self.tokenizer.quantizer

    def coded(self, z_TE: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """As the parent; on every `revive_every`-th call while training, rows are moved first."""
        every = self.own.revive_every
        if self.training and every and int(self.done) % every == 0 and int(self.done) > 0:
            dead_K = self.codebook.hits_K < self.own.revive_below
            moved = self.codebook.revive(dead_K, z_TE.detach().float(), self.generator)
            z_TE, parts = super().coded(z_TE)
            return z_TE, {**parts, "revived": float(moved)}
        return super().coded(z_TE)

    @torch.no_grad()
    def start_codebook(self, batches: Iterable[Tensor]) -> None:
        """k-means over the vectors of features x_INC of some batches."""
        vectors = []
        for x_INC in batches:
            keep_IN = self.choice(x_INC, self.generator, self.own.noise) > 0
            vectors.append(self.tokenizer.codes_before(self.tokenizer.merger.kept(x_INC, keep_IN)).float())
        most = 2**30 // len(self.codebook.codebook_KC)  # distances to all rows are held at once
        self.codebook.start_from(torch.cat(vectors)[:most], self.generator)


def trained(config: Config) -> list[Trainable]:
    """What learns, by name and rate."""
    entries = learned(config.lr)
    return entries if config.train_selector else [e for e in entries if "selector" not in e.pattern]


def stage(config: Config, work: Path, data: Path | None = None, vision: Path | None = None) -> Stage:
    """From the first phase's weights under `work`: on the pictures under `data` with the vision encoder's published file;
    without them on the bank, as the first phase."""
    generator = torch.Generator().manual_seed(config.seed)
    module = CodebookTraining(config, generator)
    weights = stage_weights(work / stage1a_selector.NAME / "weights.safetensors")
    weights.pop("done", None)

    def made(step: Callable[[CodebookTraining, Any], Losses], batches: Resumable[Any], evals: list[Any]) -> Stage:
        return Stage(
            name=NAME,
            module=module,
            step=step,
            trainable=trained(config),
            data=batches,
            optim=config.optim,
            evals=evals,
            config=config,
            generators={"choice and codebook": generator},
        )

    if data is not None:
        module.start_from(weights, published_vision(config.loss.tokenizer, vision))

        def features(batch: PairBatch) -> Tensor:
            with torch.no_grad():
                return module.tokenizer.features(batch.pixels_I3hw)

        def look(module: CodebookTraining, batch: PairBatch) -> Losses:
            module.done += 1
            return module.losses(features(batch), generator, noise=config.noise)

        batches = picture_batches(data, config.batch, config.loss.tokenizer, seed=config.seed, keep=config.keep)
        if config.kmeans:
            module.start_codebook([features(batch) for batch in islice(batches, 1)])
            batches.load_state_dict({"position": 0, "skipped": 0})
        return made(look, batches, [])
    bank = Frozen(work)
    module.start_from(weights, bank.vision.vit, bank.vision.norm)
    if config.kmeans:
        few = np.array_split(np.arange(min(2048, len(bank.bank("train")))), 8)
        module.start_codebook(bank.rows("train", part, "tokens")[0][:, 1:] for part in few)

    def step(module: CodebookTraining, i: np.ndarray) -> Losses:
        module.done += 1
        tokens, latents = bank.rows("train", i, "tokens", "latents")
        return module.losses(tokens[:, 1:], generator, noise=config.noise, latents_Ichw=latents)

    def evaluate() -> Iterator[tuple[str, float]]:
        yield from module.measure(val_features(bank))

    return made(step, IndexBatches(len(bank.bank("train")), config.batch, seed=config.seed), [evaluate])
