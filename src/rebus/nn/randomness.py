"""torch's global random state, for libraries that draw from nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def global_random(generator: torch.Generator | None) -> Iterator[None]:
    """Lets libraries that know the global generator only draw from `generator`; the global one is left as it was."""
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        yield
