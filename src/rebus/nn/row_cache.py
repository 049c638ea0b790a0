"""Keys and values of many sequences of different lengths, for decoding in which rows join and leave.

Each row has a fixed capacity and writes at its own length. A forward pass takes some of the rows, each with equally
many new tokens; `begin` says which, `mask` and `positions` what each new token sees and where it stands.

Dimension key: R rows of the cache · S rows of one pass · L new tokens of each · K keys that the pass sees · H heads ·
E head width · C capacity
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class RowCache(Cache):
    """A transformers cache whose rows are independent. Memory is taken at the first pass."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.rows, self.capacity = rows, capacity
        self.lengths = [0] * rows
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._pass: list[int] = []
        self._new = 0

    def begin(self, rows: Sequence[int], new: int) -> None:
        """Say which rows the next forward pass takes, in this order, and how many new tokens each has.

        Raises IndexError when a row has no room for them.
        """
        for row in rows:
            if self.lengths[row] + new > self.capacity:
                raise IndexError(
                    f"row {row} holds {self.lengths[row]} of {self.capacity} tokens; {new} more do not fit"
                )
        self._pass, self._new = list(rows), new

    def positions(self, device: torch.device) -> Tensor:
        """Where the new tokens of this pass stand in their rows, S x L."""
        starts = torch.tensor([self.lengths[row] for row in self._pass], device=device)
        return starts[:, None] + torch.arange(self._new, device=device)

    def mask(self, device: torch.device) -> Tensor:
        """What they see: every key of their own row up to themselves, S x 1 x L x K."""
        keys_K = torch.arange(self._width(), device=device)
        return (keys_K <= self.positions(device)[..., None])[:, None]

    def end(self) -> None:
        """Count the pass in, after the model ran."""
        for row in self._pass:
            self.lengths[row] += self._new

    def truncate(self, row: int, length: int = 0) -> None:
        """Forget all but the first `length` tokens of a row; without a length, free it."""
        self.lengths[row] = min(length, self.lengths[row])

    def copy(self, source: int, target: int) -> None:
        """Make row `target` hold what row `source` holds."""
        length = self.lengths[source]
        for layer in (*self._keys, *self._values):
            layer[target, :, :length] = layer[source, :, :length]
        self.lengths[target] = length

    def _width(self) -> int:
        return max(self.lengths[row] for row in self._pass) + self._new

    # -------------------------------------------------------------------- what transformers' models call

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values (S x H x L x E) and return all of the pass's rows (S x H x K x E)."""
        while len(self._keys) <= layer_idx:
            _, heads, _, width = key_states.shape
            for store in (self._keys, self._values):
                store.append(key_states.new_zeros(self.rows, heads, self.capacity, width))
        return self._write(self._keys[layer_idx], key_states), self._write(self._values[layer_idx], value_states)

    def _write(self, store_RHCE: Tensor, new_SHLE: Tensor) -> Tensor:
        for index, row in enumerate(self._pass):
            start = self.lengths[row]
            store_RHCE[row, :, start : start + self._new] = new_SHLE[index]
        first, width = self._pass[0], self._width()
        if self._pass == list(range(first, first + len(self._pass))):  # neighbours: a view serves, nothing is copied
            return store_RHCE[first : first + len(self._pass), :, :width]
        return store_RHCE[self._pass, :, :width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The longest row of the pass. Positions and masks are always explicit, so nothing is derived from it."""
        return self._width() - self._new if self._pass else 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys of the pass."""
        return self._width(), 0
