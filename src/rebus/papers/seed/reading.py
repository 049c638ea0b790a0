"""What SEED's tokenizer is told of the vision encoder's tokens beside themselves: where each lies, and where codes start.

Dimension key: I images · S tokens of the vision encoder · C width · E code width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebus.nn.positions import cosine_grid
from rebus.nn.vit import ViTConfig


class CosinePositions(nn.Module):
    """Adds to each patch where it lies: cosines over rows and columns, orthogonal between places, repeated over the
    width with variance 1; nothing to a class token. A fixed table, not among the weights."""

    table_SC: Tensor

    def __init__(self, vision: ViTConfig) -> None:
        super().__init__()
        table_SC = cosine_grid(vision.grid, vision.width)
        if vision.class_token:
            table_SC = torch.cat([torch.zeros(1, vision.width), table_SC])
        self.register_buffer("table_SC", table_SC, persistent=False)

    def forward(self, x_ISC: Tensor) -> Tensor:
        """x_ISC → x_ISC."""
        return x_ISC + self.table_SC.to(x_ISC.dtype)


class CodeStart(nn.Module):
    """A reading of the vision encoder's tokens, where the vectors that are looked up start; the same for every query. Its
    tensors are the mini vision encoder's own way to its image embedding."""

    def __init__(self, vision: ViTConfig, per_patch: int, width: int, contrast: int, *, of: int) -> None:
        super().__init__()
        flat = vision.grid**2 * per_patch
        self.norm = nn.LayerNorm(vision.width)
        self.patch_down = nn.Linear(vision.width, per_patch)
        self.component_head = nn.Linear(flat, width)
        self.contrast_head = nn.Linear(flat + vision.width * vision.class_token, contrast) if contrast else None
        self.left = of - width - contrast
        self.class_token = vision.class_token

    def forward(self, x_ISC: Tensor) -> Tensor:
        """x_ISC → [I, E], zeros where the Q-Former alone speaks."""
        x_ISC = self.norm(x_ISC)
        first = int(self.class_token)
        flat = self.patch_down(x_ISC[:, first:]).flatten(1)
        start = self.component_head(flat)
        if self.contrast_head is not None:
            contrast = self.contrast_head(torch.cat([*x_ISC[:, :first].unbind(1), flat], dim=1))
            length = contrast.shape[1] ** 0.5  # a number's mean square is 1, as in the embedding
            start = torch.cat([start, nn.functional.normalize(contrast, dim=1) * length], dim=1)
        return nn.functional.pad(start, (0, self.left))
