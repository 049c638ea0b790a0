"""New vocabulary rows: words that a language model learns beside those it came with.

They are parameters of their own, so that what trains has a name and the old table stays frozen and uncopied.

Dimension key: V vocabulary · C codebook width · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Table(Protocol):
    """Vectors of the new words, counted from the first of them."""

    def __call__(self, ids: Tensor) -> Tensor:
        """ids of any shape → x of that shape and D."""
        ...

    def table(self) -> Tensor:
        """All rows, V x D."""
        ...


@dataclass(frozen=True)
class RowInit:
    """How a new row begins: `mean` times the mean of the old rows, plus normal noise of deviation `std`."""

    mean: float = 0.0
    """Share of the old rows' mean. SEED and LaVIT 0; SEED-X 1 for input rows and 3 for output rows."""
    std: float = 0.02
    """Deviation of the noise."""


class Rows(nn.Module):
    """Trained vocabulary rows. `forward` looks ids up, `table` is all of them."""

    def __init__(self, weight_VD: Tensor) -> None:
        super().__init__()
        self.weight_VD = nn.Parameter(weight_VD)

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape, counted from the first new word → x of that shape and D."""
        return F.embedding(ids, self.weight_VD)

    def table(self) -> Tensor:
        """All rows, V x D."""
        return self.weight_VD


class MarkRows(Rows):
    """Trained rows of marks; those of the `blank` words before them and the `behind` after them, which something else chooses, are zeros."""

    def __init__(self, weight_VD: Tensor, blank: int, behind: int = 0) -> None:
        super().__init__(weight_VD)
        self.blank, self.behind = blank, behind

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape, counted from the first new word → x of that shape and D."""
        return F.embedding(ids, self.table())

    def table(self) -> Tensor:
        """All rows, V x D."""
        return F.pad(self.weight_VD, (0, 0, self.blank, self.behind))


class CodebookRows(nn.Module):
    """Input rows computed from a frozen codebook by one linear layer, as SEED v1 reads its images; then `marks`
    ordinary rows. V = entries of the codebook + marks."""

    def __init__(self, codebook_VC: Tensor, marks_VD: Tensor) -> None:
        super().__init__()
        self.codebook_VC = nn.Buffer(codebook_VC)
        self.proj = nn.Linear(codebook_VC.shape[1], marks_VD.shape[1])
        self.marks_VD = nn.Parameter(marks_VD)

    def forward(self, ids: Tensor) -> Tensor:
        """ids of any shape, counted from the first new word → x of that shape and D."""
        return F.embedding(ids, self.table())

    def table(self) -> Tensor:
        """All rows, V x D."""
        projected_VD = self.proj(self.codebook_VC)
        return torch.cat([projected_VD, self.marks_VD.to(projected_VD.dtype)])

    @torch.no_grad()
    def fit(self, wanted_VD: Tensor) -> None:
        """Sets the layer to the one whose rows of the codebook's entries come nearest to `wanted_VD` (least squares)."""
        entries_VC = self.codebook_VC.float()
        found = torch.linalg.lstsq(F.pad(entries_VC, (0, 1), value=1.0), wanted_VD.float()).solution
        self.proj.weight.copy_(found[:-1].T)
        self.proj.bias.copy_(found[-1])


class NewRows(nn.Module):
    """New words: input rows and output rows, modules that are a `Table`. Give one as both to tie them."""

    input: Table
    output: Table

    def __init__(self, input: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.add_module("input", input)
        self.add_module("output", output)


def new_rows(
    old_input_VD: Tensor,
    old_output_VD: Tensor,
    count: int,
    *,
    input_init: RowInit | None = None,
    output_init: RowInit | None = None,
    tied: bool = False,
    generator: torch.Generator | None = None,
) -> NewRows:
    """`count` new words beside two old tables, in float32 on their device; one parameter serves input and output where
    `tied`."""
    input_init = input_init or RowInit()
    rows = Rows(init_rows(old_input_VD, count, input_init, generator))
    if tied:
        return NewRows(rows, rows)
    return NewRows(rows, Rows(init_rows(old_output_VD, count, output_init or input_init, generator)))


@torch.no_grad()
def init_rows(old_VD: Tensor, count: int, init: RowInit, generator: torch.Generator | None) -> Tensor:
    """`count` rows in float32 for a table like `old_VD`; on the meta device where that is."""
    shape = (count, old_VD.shape[1])
    if old_VD.is_meta:
        return torch.empty(shape, device="meta")
    device = old_VD.device if generator is None else generator.device
    noise_VD = torch.randn(shape, generator=generator, device=device).to(old_VD.device) * init.std
    return noise_VD + init.mean * old_VD.float().mean(0) if init.mean else noise_VD
