"""The head of an image decoder that ends in SDXL: tokens in two parts, as SDXL's two text encoders give, and one vector.

Dimension key: I images · N tokens · C width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebus.nn.attention import attend


class AttentionPool(nn.Module):
    """Features → one vector: their mean asks all of them (CLIP's ResNets end so)."""

    def __init__(self, tokens: int, width: int, out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.zeros(tokens + 1, width))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, out)

    def tokens(self, x_INC: Tensor) -> Tensor:
        """The mean, then the features, with positions: [I, 1 + N, C]."""
        return torch.cat([x_INC.mean(1, keepdim=True), x_INC], dim=1) + self.positions

    def forward(self, x_INC: Tensor) -> Tensor:
        """x_INC → [I, out]. (The published classes let every token ask and take the first answer.)"""
        x_INC = self.tokens(x_INC)
        asked_I1C = attend(self.query(x_INC[:, :1]), self.key(x_INC), self.value(x_INC), self.heads)
        return self.proj(asked_I1C)[:, 0]


class PooledHead(nn.Module):
    """Features → what a UNet of SDXL's kind reads: tokens in two parts of `widths`, and a vector of width `pooled`."""

    def __init__(self, tokens: int, width: int, heads: int, widths: tuple[int, int], pooled: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(width, out) for out in widths)
        self.pool = AttentionPool(tokens, width, pooled, heads)

    @torch.no_grad()
    def init_positions(self, generator: torch.Generator | None = None) -> None:
        """Positions of the pool from a normal that is the narrower the wider the features are."""
        positions = self.pool.positions
        nn.init.normal_(positions, std=positions.shape[1] ** -0.5, generator=generator)

    def forward(self, x_INC: Tensor) -> tuple[Tensor, Tensor]:
        """x_INC → tokens [I, N, sum of the widths] and the vector [I, pooled]."""
        return torch.cat([self.first(x_INC), self.second(x_INC)], dim=-1), self.pool(x_INC)
