"""Where an edit keeps its source: a small network that compares the draft of what is to be drawn with the source's latent (ours).

The paper's second stage learns on millions of edits to copy what is not to change; a denoiser of minutes copies coarsely. What this network calls
kept is laid over the image predicted at every step.

Dimension key: I images · c latent channels · h w latent sides
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class KeepMask(nn.Module):
    """Draft and source → how sure it is that a place of the source stays as it is, before the sigmoid."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3 * channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        # beside what lies around a place, what the whole picture is like: edits of style change it everywhere
        self.whole = nn.Linear(width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, draft_Ichw: Tensor, source_Ichw: Tensor) -> Tensor:
        """Logits [I, 1, h, w]; of a source that is not there (zeros) it says nothing that means anything."""
        differs = draft_Ichw - source_Ichw
        x = self.layers(torch.cat([draft_Ichw, source_Ichw, differs], dim=1))
        x = x + self.whole(x.mean((2, 3)))[..., None, None]
        return self.out(nn.functional.silu(x))
