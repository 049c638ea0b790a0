"""A stage of one's own, by its dotted name: `rebus train tests.line_stage --batch 4`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests import parallel_runs

from rebus.train import Optim, Stage


@dataclass(frozen=True)
class Config:
    """A line."""

    optim: Optim = field(default_factory=lambda: Optim(steps=6, precision="fp32"))
    """Optimiser and schedule."""
    refuse: bool = False
    """Whether a batch of the last process is refused."""


CONFIGS = {"line": Config()}


def stage(config: Config) -> Stage:
    """Needs nothing."""
    return replace(parallel_runs.line(trouble=parallel_runs.refusing if config.refuse else None), optim=config.optim)
