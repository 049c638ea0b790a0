"""SEED-X's adapter: what an image decoder of SDXL's kind is told of an image's features (section 3.1, appendix B).

A resampler turns any number of feature vectors into a fixed number of tokens: learned latents that look at the features
and at each other. A head makes of these what stands in for the states of SDXL's two text encoders, and one vector.

    x_INC ─ proj_in ─▶ features ┐
             latents ───────────┴─ depth × (attention, feed-forward) ─ norm ─▶ head ─▶ tokens_ISC, pooled_IP

Dimension key: I images · N features of an image · S latents · C width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn

from rebus.nn.attention import attend, init_linears_by_width
from rebus.nn.pooled_head import PooledHead


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of the adapter; the defaults are the published ones."""

    in_width: int = 4096
    """Width of the features."""
    latents: int = 64
    """Tokens that come out."""
    width: int = 1024
    """Width C within the resampler."""
    depth: int = 4
    """Layers."""
    heads: int = 16
    """Attention heads, of the resampler and of the pool."""
    head_width: int = 64
    """Width of one of the resampler's heads."""
    mlp_ratio: int = 4
    """Hidden width of the feed-forward, in widths."""
    widths: tuple[int, int] = (768, 1280)
    """Widths of the two halves of a token."""
    pooled: int = 1280
    """Width of the vector."""
    normalize: bool = False
    """Whether each channel of the features is scaled to length 1 over the image's vectors (older releases, SEED-Story)."""


class LatentAttention(nn.Module):
    """Latents look at features and at themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.source_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, heads * head_width, bias=False)
        self.key_value = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.proj = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, latents_ISC: Tensor, x_INC: Tensor) -> Tensor:
        """latents_ISC → latents_ISC, without what came in."""
        latents_ISC = self.norm(latents_ISC)
        seen = torch.cat([self.source_norm(x_INC), latents_ISC], dim=1)
        key, value = self.key_value(seen).chunk(2, dim=-1)
        return self.proj(attend(self.query(latents_ISC), key, value, self.heads))


class FeedForward(nn.Module):
    """Norm and two linear layers without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] → [..., C]."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class AdapterLayer(nn.Module):
    """Attention, then feed-forward, each added to the latents."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.attention = LatentAttention(config.width, config.heads, config.head_width)
        self.feed_forward = FeedForward(config.width, config.mlp_ratio * config.width)

    def forward(self, latents_ISC: Tensor, x_INC: Tensor) -> Tensor:
        """latents_ISC → latents_ISC."""
        latents_ISC = latents_ISC + self.attention(latents_ISC, x_INC)
        return latents_ISC + self.feed_forward(latents_ISC)


class Adapter(nn.Module):
    """Features of an image, any number of them → tokens and a vector for the denoiser."""

    def __init__(self, config: AdapterConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.latents_1SC = nn.Parameter(torch.empty(1, config.latents, width))
        self.proj_in = nn.Linear(config.in_width, width)
        self.layers = nn.ModuleList(AdapterLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = PooledHead(config.latents, width, config.heads, config.widths, config.pooled)
        init_linears_by_width(self, generator)
        self.head.init_positions(generator)
        nn.init.normal_(self.latents_1SC, std=width**-0.5, generator=generator)

    def resample(self, x_INC: Tensor) -> Tensor:
        """Features x_INC → latents_ISC."""
        if self.config.normalize:
            x_INC = F.normalize(x_INC, dim=1)
        x_INC = self.proj_in(x_INC)
        latents_ISC = repeat(self.latents_1SC, "1 s c -> i s c", i=len(x_INC))
        for layer in self.layers:
            latents_ISC = layer(latents_ISC, x_INC)
        return self.norm(latents_ISC)

    def forward(self, x_INC: Tensor) -> tuple[Tensor, Tensor]:
        """x_INC → tokens [I, S, sum of the widths] and pooled [I, pooled]."""
        return self.head(self.resample(x_INC))
