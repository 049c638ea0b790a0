"""SEED stage 3, second phase: adapters are merged, then all but the embeddings is tuned (SEED-LLaMA section 3.2).

The paper tunes in full after LoRA, which it finds better than LoRA alone; no script for it was published. Rate, length
and schedule are our choice: stage 3's, with a tenth of its rate and of its steps.

    rebus train seed.stage3_full --config paper --work state --data sets.json --tokenizer weights/seed --base vicuna

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rebus.papers.seed import tuning
from rebus.papers.seed.mixture import PRETRAIN
from rebus.papers.seed.variants import SeedConfig
from rebus.train import Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """The second phase of stage 3."""

    system: SeedConfig = field(default_factory=SeedConfig)
    """The system whose language model is trained, as stage 3 was given it."""
    source_batch: int | None = None
    """Documents of a batch; none: as many as the table says for its source."""
    lr: float = 1.5e-5
    """Peak learning rate of everything but the word table."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=3000,
            warmup=0.03,
            min_lr_ratio=0.05,
            betas=(0.9, 0.95),
            eps=1e-5,
            weight_decay=0.05,
            clip=1.0,
            accumulate=4,
        )
    )
    """Optimiser and schedule."""
    seed: int = 42
    """Order of the documents."""


CONFIGS = {"paper": Config()}


def stage(config: Config, work: Path, data: Path, tokenizer: Path | None = None, base: Path | None = None) -> Stage:
    """Needs stage 3's weights under `work`; `data` names the sets, `tokenizer` and `base` are those that it was given."""
    given = tuning.parts(config.system, data, tokenizer, base)
    return Stage(
        name=tuning.TUNED,
        module=tuning.merged(given, work, "plain", tuned=False),
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=[Trainable("lm.llm.base.*embed_*", 0.0), Trainable("lm.llm.base.*", config.lr)],
        data=tuning.batches(given, PRETRAIN, batch=config.source_batch, seed=config.seed),
        optim=config.optim,
        config=tuning.recorded(config, given),
    )
