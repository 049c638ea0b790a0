"""The draft: a coarse latent predicted from one vector, or from a grid of patch features, for a denoiser to refine.

A small convolutional decoder learns in minutes where things are, which a denoiser that sees only a vector learns slowly.
Its prediction enters through extra input channels, the way SEED-X's second stage takes the source image. Ours, used by
the mini variants alone: no official variant has it.

Dimension key: I images · N patches · C width of a vector · c latent channels · h w latent sides
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class DraftConfig:
    """Shape of a `DraftDecoder`."""

    vector_width: int = 512
    """Width of the image embedding."""
    latent_channels: int = 4
    """Channels of the latent."""
    start: int = 4
    """Side of the first feature map; each further width doubles it."""
    widths: tuple[int, ...] = (128, 96, 64)
    """Channels at each side, from `start` upwards."""
    linear: bool = False
    """Whether the convolutions only correct a linear reading of the vector, which least squares give at once."""


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class DraftDecoder(nn.Module):
    """Image embedding [I, C] → coarse standardised latent [I, c, h, w], trained by mean squared error."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.config = config
        first, *rest = config.widths
        self.lift = nn.Linear(config.vector_width, first * config.start**2)
        self.first = _Residual(first)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1), _Residual(b))
            for a, b in zip(config.widths, rest, strict=False)
        )
        self.out = nn.Sequential(nn.GroupNorm(8, config.widths[-1]), nn.SiLU())
        self.head = nn.Conv2d(config.widths[-1], config.latent_channels, 3, padding=1)
        side = config.start * 2 ** len(rest)
        self.linear = nn.Linear(config.vector_width, config.latent_channels * side**2) if config.linear else None
        if config.linear:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def fit_linear(self, vector_TC: Tensor, latent_Tchw: Tensor, *, ridge: float = 1e-3) -> None:
        """Sets the linear reading by least squares over examples. Raises ValueError where there is none."""
        _fit(self.linear, vector_TC, latent_Tchw.flatten(1), ridge)

    def forward(self, vector_IC: Tensor) -> Tensor:
        """The coarse latent of each vector."""
        fine = self._convolved(vector_IC)
        return fine if self.linear is None else fine + self.linear(vector_IC).view_as(fine)

    def _convolved(self, vector_IC: Tensor) -> Tensor:
        x = rearrange(self.lift(vector_IC), "i (c h w) -> i c h w", h=self.config.start, w=self.config.start)
        x = self.first(x)
        for stage in self.up:
            x = stage(x)
        return self.head(self.out(x))


def _fit(linear: nn.Linear | None, x_TC: Tensor, y_TL: Tensor, ridge: float) -> None:
    if linear is None:
        raise ValueError("This draft has no linear reading. Build it with `linear=True`.")
    weight_LC, bias_L = least_squares(x_TC, y_TL, ridge)
    linear.weight.copy_(weight_LC)
    linear.bias.copy_(bias_L)


def least_squares(x_TC: Tensor, y_TL: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight [L, C] and bias [L] of the linear layer that comes nearest to `y_TL` over examples, `ridge` times their number
    added to the squares."""
    mean_C, mean_L = x_TC.mean(0), y_TL.mean(0)
    apart_TC, wanted_TL = (x_TC - mean_C).double(), (y_TL - mean_L).double()
    square_CC = apart_TC.T @ apart_TC
    square_CC.diagonal().add_(ridge * len(apart_TC))
    weight_CL = torch.linalg.solve(square_CC, apart_TC.T @ wanted_TL).to(x_TC.dtype)
    return weight_CL.T, mean_L - mean_C @ weight_CL


@dataclass(frozen=True)
class GridDraftConfig:
    """Shape of a `GridDraft`."""

    token_width: int = 192
    """Width of a patch feature."""
    grid: int = 8
    """Patches along one side of the image."""
    latent_channels: int = 4
    """Channels of the latent."""
    widths: tuple[int, ...] = (128, 64)
    """Channels at each side, from `grid` upwards; each further width doubles it."""
    linear: bool = False
    """Whether the convolutions only correct a linear reading of each feature, which least squares give at once."""


class GridDraft(nn.Module):
    """Patch features [I, N, C] in raster order → coarse standardised latent [I, c, h, w]. Features that lie where the
    latent lies are far easier to draw from than one vector."""

    def __init__(self, config: GridDraftConfig):
        super().__init__()
        self.config = config
        first, *rest = config.widths
        self.lift = nn.Conv2d(config.token_width, first, 3, padding=1)
        self.first = _Residual(first)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1), _Residual(b))
            for a, b in zip(config.widths, rest, strict=False)
        )
        self.out = nn.Sequential(nn.GroupNorm(8, config.widths[-1]), nn.SiLU())
        self.head = nn.Conv2d(config.widths[-1], config.latent_channels, 3, padding=1)
        self.times = 2 ** len(rest)
        numbers = config.latent_channels * self.times**2
        self.linear = nn.Linear(config.token_width, numbers) if config.linear else None
        if config.linear:
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

    @torch.no_grad()
    def fit_linear(self, x_INC: Tensor, latent_Ichw: Tensor, *, ridge: float = 1e-3) -> None:
        """Sets the linear reading by least squares over examples. Raises ValueError where there is none."""
        patches = rearrange(latent_Ichw, "i c (h a) (w b) -> (i h w) (c a b)", a=self.times, b=self.times)
        _fit(self.linear, x_INC.flatten(0, 1), patches, ridge)

    def forward(self, x_INC: Tensor) -> Tensor:
        """The coarse latent of each grid of features."""
        fine = self._convolved(x_INC)
        if self.linear is None:
            return fine
        grid, times = self.config.grid, self.times
        return fine + rearrange(self.linear(x_INC), "i (h w) (c a b) -> i c (h a) (w b)", h=grid, a=times, b=times)

    def _convolved(self, x_INC: Tensor) -> Tensor:
        x = self.first(self.lift(rearrange(x_INC, "i (h w) c -> i c h w", h=self.config.grid)))
        for stage in self.up:
            x = stage(x)
        return self.head(self.out(x))
