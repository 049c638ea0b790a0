"""What one process of a bulk run does, whichever engine started it: it holds a tokenizer and makes shards with it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebus.apps.patches import give_tokens
from rebus.data.manifest import Manifest
from rebus.data.token_files import Number
from rebus.data.token_shards import Entry, Reading, Recipe, tokenize_shard
from rebus.errors import RebusError

Seen = Callable[[int, int], None]
"""Told of every batch: pictures, bytes."""
Make = Callable[[Path, Seen], Entry]
"""Makes the shard of tokens of a shard of pictures."""


@dataclass(frozen=True)
class Worker:
    """Says how to become a worker; travels to the process that shall be one."""

    system: str
    """which model"""
    out: Path
    """folder of the shards of tokens"""
    weights: Path | None = None
    """weights of one's own"""
    reading: Reading = "both"
    """which readings of an image are stored"""
    number: Number = "float16"
    """number format of vectors"""
    tokens: int | None = None
    """tokens of every image, of a tokenizer that chooses"""
    seed: int = 0
    """of what is drawn"""
    batch: int = 32
    """pictures encoded together"""
    device: str = "cpu"
    """where it runs; `cuda` is shared out by number"""
    threads: int = 1
    """threads of one worker"""

    def open(self, number: int = 0) -> Make:
        """Loads the tokenizer; `number` counts the workers of this machine. Raises RebusError where it cannot be loaded, or
        the folder holds shards that were made otherwise."""
        quiet()
        from rebus.system import load  # takes seconds

        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)  # a system of random weights is then the same in every process
        device = self.device
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
        model: Any = load(self.system, weights=self.weights, device=device, parts=("tokenizer",))
        if model.tokenizer is None:
            raise RebusError(
                f"{self.system} has no tokenizer, so it cannot read pictures. Choose one with `rebus list`."
            )
        give_tokens(model, self.system, self.tokens)
        recipe = Recipe(
            model.tokenizer.source,
            self.reading,
            self.number,
            self.tokens,
            self.seed,
            self.batch,
            torch.device(device).type,
            self.threads,
        )
        manifest = Manifest(self.out)
        manifest.begin(recipe)

        def make(source: Path, seen: Seen) -> Entry:
            entry = tokenize_shard(source, self.out / source.name, model.tokenizer, recipe, seen=seen)
            manifest.commit(entry)
            return entry

        return make


@dataclass(frozen=True)
class Saw:
    """A worker has taken a batch in."""

    images: int
    size: int


@dataclass(frozen=True)
class Done:
    """A shard is done."""

    entry: Entry


@dataclass(frozen=True)
class Died:
    """A worker ended before its shard did; the shard is given to another."""

    shard: str
    why: str


@dataclass(frozen=True)
class Lost:
    """A shard that no worker could make."""

    shard: str
    why: str


Event = Saw | Done | Died | Lost
ATTEMPTS = 3
"""How often a shard is given to a worker."""


def quiet() -> None:
    """Keeps what libraries say of themselves off the terminal, as `guard` does in the first process."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
