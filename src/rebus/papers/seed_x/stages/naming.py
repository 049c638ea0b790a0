"""After alignment: the whole language model learns to say what a picture shows (ours; mini only).

As `rebus.papers.seed.stages.naming`, for an image that goes in as vectors.

    rebus train seed_x.naming --config mini --work state

Dimension key: none
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rebus.mini.frozen import Frozen
from rebus.mini.vector_stages import VectorNamingConfig, naming_stage
from rebus.papers.seed_x.stages import align
from rebus.papers.seed_x.variants import MINI, SeedXConfig
from rebus.train import Stage


@dataclass(frozen=True)
class Config(VectorNamingConfig):
    """How names are learned."""

    system: SeedXConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""


CONFIGS = {"mini": Config(adapters="seed-mini")}


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed_x.align` needs, and its weights under `work`."""
    data = Frozen(work)
    whole = align.fresh(config.system, data, config.seed)
    return naming_stage("seed_x.naming", whole, align.read, data, config, aligned=align.NAME)
