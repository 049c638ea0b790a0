"""Fixed tables that tell where the cells of a square grid lie.

Dimension key: N cells, row by row · G F places and waves of a side · C width
"""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor


def cosine_grid(side: int, width: int) -> Tensor:
    """Cosines over rows and columns, orthogonal between places, repeated over the width with variance 1: [N, C]."""
    place = (torch.arange(side) + 0.5) / side
    waves_GF = torch.cos(torch.pi * place[:, None] * torch.arange(1, side + 1))
    rows = repeat(waves_GF, "h f -> (h w) f", w=side)
    columns = repeat(waves_GF, "w f -> (h w) f", h=side)
    both_NF = torch.cat([rows, columns], dim=1)
    table_NC = both_NF.repeat(1, -(-width // both_NF.shape[1]))[:, :width]
    return table_NC / table_NC.std()
