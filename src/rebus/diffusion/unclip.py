"""What an unCLIP diffusion model is told about an image: its CLIP embedding, made a little noisy, and how noisy.

Dimension key: I images · C embedding width · T noise levels
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rebus.errors import RebusError


def squared_cosine_alphas(levels: int = 1000, *, max_beta: float = 0.999) -> Tensor:
    """Cumulative alphas_T of the squared-cosine DDPM schedule (Nichol and Dhariwal 2021, equation 17), float32."""

    def alpha_bar(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((t + 1) / levels) / alpha_bar(t / levels), max_beta) for t in range(levels)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)


def level_embedding(level_I: Tensor, width: int) -> Tensor:
    """Sinusoids of the noise level, [I, width]: cosines, then sines, of frequencies 1 … 1/10000 (end excluded).

    With an odd width the last column is zero.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=level_I.device) / half)
    angles = level_I[:, None].float() * frequencies
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class UnclipCondition(nn.Module):
    """Image embedding → the class label of an unCLIP denoiser, twice as wide (Stable unCLIP 2.1: 1,024 → 2,048).

    `mean` and `std` [1, C] standardise the embedding before noise is added; they come with the diffusion model.
    """

    mean: Tensor
    std: Tensor
    alphas_T: Tensor

    def __init__(self, width: int = 1024, alphas_T: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, width))
        self.register_buffer("std", torch.ones(1, width))
        alphas_T = squared_cosine_alphas() if alphas_T is None else alphas_T
        self.register_buffer("alphas_T", alphas_T, persistent=False)

    def forward(self, x_IC: Tensor, level: int, noise_IC: Tensor) -> Tensor:
        """Embeddings, noise level 0..T-1 and standard normal noise → [I, 2C]. Even level 0 adds a little noise.

        Raises RebusError for a level that the schedule does not have.
        """
        if not 0 <= level < len(self.alphas_T):
            raise RebusError(
                f"The image embedding can be made noisy at level 0 to {len(self.alphas_T) - 1}, but {level} was asked "
                "for. Choose a `noise_level` in that range; 0 keeps the most of the image."
            )
        alpha = self.alphas_T[level].to(x_IC.dtype)
        standard_IC = (x_IC - self.mean) / self.std
        noisy_IC = (alpha.sqrt() * standard_IC + (1 - alpha).sqrt() * noise_IC) * self.std + self.mean
        level_I = torch.full((len(x_IC),), level, device=x_IC.device)
        return torch.cat([noisy_IC, level_embedding(level_I, x_IC.shape[1]).to(noisy_IC.dtype)], dim=1)


def guidance_labels(label_IC: Tensor, negative_IC: Tensor | None = None) -> Tensor:
    """Labels for both halves of a guided batch, [2I, C]: first what to move away from (zeros unless given), then
    `label_IC`."""
    away_IC = torch.zeros_like(label_IC) if negative_IC is None else negative_IC
    return torch.cat([away_IC, label_IC])
