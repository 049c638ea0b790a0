"""What a language model may know of codes beyond the rows of its vocabulary: how they are read, and which one comes next.

Dimension key: B batch · L length · N places of a batch · I images · V words that compete · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from rebus.nn.running_sums import SummedWords
from rebus.nn.word_drawings import WordDrawings

if TYPE_CHECKING:  # which knows codes by this protocol
    from rebus.nn.text_model import TextModel


@dataclass(frozen=True)
class CodePositions:
    """New words that the grammar allows at one place of an image each: `places` blocks of `each` words, one behind the other
    from the new word `first` on (the first new word is 0)."""

    first: int
    places: int
    each: int


class WrittenCodes(Protocol):
    """A module, `rebus.nn.image_codes` or `rebus.nn.patch_codes`."""

    summed: SummedWords
    """Which words are codes."""

    @property
    def begin(self) -> int:
        """Id of the mark that begins an image."""
        ...

    @property
    def draws(self) -> WordDrawings | None:
        """How images are written from words; none: by the codes' output rows."""
        ...

    def look_up_in(self, llm: TextModel) -> None:
        """Whose words are read and said."""
        ...

    def positions(self, words: int) -> CodePositions:
        """Which words compete where the vocabulary had so many `words` before."""
        ...

    def read(self, x_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Vectors that are read in place of those of words."""
        ...

    def wanted(self, hidden_ID: Tensor, *, sharper: float = 1.0) -> Tensor:
        """What images are to be, by the states of the marks that begin them."""
        ...

    def following(self, wanted: Tensor, hidden_D: Tensor, written: Sequence[int]) -> tuple[int, Tensor]:
        """What comes next in one image that is `wanted`, by the state before it and the words that are `written` of it: the first of the words that
        compete, and their logits [V]."""
        ...

    def next_logits(self, hidden_BLD: Tensor, ids_BL: Tensor, where_BL: Tensor) -> Tensor:
        """What comes next behind some words of whole rows, [N, V]: each must stand within an image whose beginning is in the row."""
        ...

    def unused(self) -> Tensor:
        """Zero, made of everything that learns."""
        ...
