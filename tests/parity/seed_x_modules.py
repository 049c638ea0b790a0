"""What SEED-X's parity checks share.

Dimension key: none
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tests.parity.golden import Golden
from torch import Tensor, nn

from rebus.checkpoint import Rule, convert
from rebus.papers.seed_x.spelling import SeedXGrammarConfig, from_added_tokens

SOURCE = "golden"


def fill(module: nn.Module, theirs: dict[str, Tensor], rules: tuple[Rule, ...]) -> None:
    """Converts all of a module strictly and loads it."""
    module.load_state_dict(dict(convert(theirs, rules, module.state_dict()).tensors))


def exactly(golden: Golden, atol: float) -> Callable[[str, Tensor], None]:
    """Comparison within an absolute tolerance alone, as the files' own account gives it."""
    return lambda name, got: golden.check(name, got, atol=atol, rtol=0)


class Toy:
    """The files' toy tokenizer: a character is one of a few words, and special words follow."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.words: int = about["nbase"]
        self.added: dict[str, int] = about["special_ids"]
        self.specials = {"<unk>": 0, "<s>": 1, "</s>": 2}
        self.text_V = torch.arange(self.words) > 2

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) % (self.words - 3) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"#{word}" for word in ids)

    def spell(self, text: str) -> list[int]:
        """The ids of text in which special words stand by name."""
        names = self.specials | self.added
        pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        return [word for piece in pieces for word in ([names[piece]] if piece in names else self.encode(piece))]

    def grammar(self, slots: int) -> SeedXGrammarConfig:
        """The spelling of these words."""
        locations = sum(name.startswith("<loc-") for name in self.added)
        return from_added_tokens(self.added, SeedXGrammarConfig(slots=slots, locations=locations))
