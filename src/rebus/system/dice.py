"""Random streams of a reply that do not depend on each other."""

from __future__ import annotations

import torch


class Dice:
    """The random streams of one reply, all from its generator: what encodes its images, what chooses its words, and one
    for each image that it draws, so that none depends on how much the others used."""

    def __init__(self, generator: torch.Generator | None) -> None:
        seeds = _seeds(generator or _seeded(0), 3)
        self.encoding, self.words, self._images = (_seeded(seed) for seed in seeds)

    def image(self) -> torch.Generator:
        """The stream of the next image."""
        return _seeded(_seeds(self._images, 1)[0])

    def split(self, count: int) -> list[Dice]:
        """As many dice for as many replies to the same document."""
        return [self] if count == 1 else [Dice(_seeded(seed)) for seed in _seeds(self.words, count)]


def _seeds(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).tolist()


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
