"""After alignment: the whole language model learns to say what a picture shows (ours; mini only).

As `rebus.papers.seed.stages.naming`, for an image that goes in as vectors.

    rebus train lavit.naming --config mini --work state

Dimension key: none
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rebus.mini.frozen import Frozen
from rebus.mini.vector_stages import VectorNamingConfig, naming_stage
from rebus.papers.lavit.stages import align
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.train import Stage


@dataclass(frozen=True)
class Config(VectorNamingConfig):
    """How names are learned."""

    system: LavitConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""


CONFIGS = {"mini": Config(adapters="seed-mini")}


def stage(config: Config, work: Path) -> Stage:
    """Needs what `lavit.align` needs, and its weights under `work`."""
    data = Frozen(work)
    whole = align.fresh(config.system, data, config.seed)
    return naming_stage("lavit.naming", whole, align.read, data, config, aligned=align.NAME)
