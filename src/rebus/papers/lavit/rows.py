"""Rows of several images end to end ("packed") and as a rectangle: linear layers run over the packed rows, so that
nothing is computed for rows that no image has; attention runs over the rectangle.

Dimension key: I images · N all rows of an image · L rows of the longest image · T rows of all images · C width
"""

from __future__ import annotations

import torch
from torch import Tensor


def slots(lengths_I: Tensor) -> Tensor:
    """Lengths → bool slots_IL: the places that are taken, the first of each image."""
    longest = int(lengths_I.max()) if len(lengths_I) else 0
    return torch.arange(longest, device=lengths_I.device) < lengths_I[:, None]


def spread(x_TC: Tensor, slots_IL: Tensor) -> Tensor:
    """Packed rows → rectangle x_ILC, zero where a place is not taken."""
    x_ILC = x_TC.new_zeros(*slots_IL.shape, x_TC.shape[-1])
    return x_ILC.index_put(slots_IL.nonzero(as_tuple=True), x_TC)
