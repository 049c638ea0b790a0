"""A resampler of one layer: learned queries look once at a square grid of vectors (Qwen-VL; SEED-X sections 3.1 and 3.3).

SEED-X uses it three times: it pools the vision encoder's patches, leads views into the language model, and leads hidden
states out of it.

Dimension key: B batch · Q queries · L vectors looked at, a square grid row by row · S source width · C width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebus.nn.attention import attend, init_linears
from rebus.nn.vit import resize_positions


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a resampler. The defaults are those that lead into SEED-X's language model."""

    grid: int = 8
    """Side of the grid of queries; there are grid² of them."""
    width: int = 5120
    """Width of queries and output."""
    heads: int = 32
    """Attention heads."""
    source_width: int = 4096
    """Width of the vectors looked at. Where it is `width`, they are taken without a projection."""
    eps: float = 1e-5
    """Epsilon of the layer norms (inside the vision encoder: 1e-6)."""

    @property
    def queries(self) -> int:
        """Number of queries, and so of output vectors."""
        return self.grid**2


class Resampler(nn.Module):
    """source_BLS → x_BQC. Positions are added to queries and keys, not to values; there is no residual, no MLP and no
    norm behind."""

    def __init__(self, config: ResamplerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.width % config.heads or config.width % 4:
            raise ValueError(
                "A resampler needs heads that fill its width and a width of whole quarters, but its width is "
                f"{config.width} with {config.heads} heads. Choose a multiple of both."
            )
        width = config.width
        self.config = config
        self.queries_QC = nn.Parameter(torch.zeros(config.queries, width))
        # stored, since published weights are used with the table that they were trained with
        self.position_QC = nn.Buffer(sincos_grid(config.grid, width))
        projected = config.source_width != width
        self.source = nn.Linear(config.source_width, width, bias=False) if projected else nn.Identity()
        self.norm_queries = nn.LayerNorm(width, eps=config.eps)
        self.norm_source = nn.LayerNorm(width, eps=config.eps)
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights for training from scratch, as Qwen-VL's: normal of std 0.02, but the three projections into the
        attention uniform, as torch begins one matrix of all three."""
        nn.init.trunc_normal_(self.queries_QC, std=0.02, generator=generator)
        init_linears(self, generator)
        bound = (6 / (4 * self.config.width)) ** 0.5
        for linear in (self.query, self.key, self.value):
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)

    def forward(self, source_BLS: Tensor, mask: Tensor | None = None) -> Tensor:
        """Vectors of a square grid → x_BQC. `mask` as in `rebus.nn.attention.attend`.

        Raises ValueError when L is not the square of a number.
        """
        side = round(source_BLS.shape[1] ** 0.5)
        if side**2 != source_BLS.shape[1]:
            raise ValueError(
                f"A resampler looks at a square grid of vectors, but got {source_BLS.shape[1]} of them. "
                "Give as many as a square has."
            )
        source_BLC = self.norm_source(self.source(source_BLS))
        queries_QC = self.norm_queries(self.queries_QC) + self.position_QC
        keys_BLC = source_BLC + self.positions(side).to(source_BLC.dtype)
        q_BQC = self.query(queries_QC).expand(len(source_BLC), -1, -1)
        x_BQC = attend(q_BQC, self.key(keys_BLC), self.value(source_BLC), self.config.heads, mask)
        return self.proj(x_BQC)

    def positions(self, side: int) -> Tensor:
        """The table of positions, L x C, resized to a grid of `side` x `side`."""
        return resize_positions(self.position_QC[None], side, extra=0)[0]


def sincos_grid(side: int, width: int) -> Tensor:
    """Sines and cosines of the places of a square grid, row by row, [side², width]: the first half of the channels tells
    the column, the second half the row; in each half the sines come first."""
    frequency_C = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle_NC = torch.arange(side, dtype=torch.float64)[:, None] * frequency_C
    along_NC = torch.cat([angle_NC.sin(), angle_NC.cos()], dim=1)
    column_NC, row_NC = along_NC.repeat(side, 1), along_NC.repeat_interleave(side, dim=0)
    return torch.cat([column_NC, row_NC], dim=1).float()
