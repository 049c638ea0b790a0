"""SEED-X's vision encoder: Qwen-VL's ViT-G and the resampler that pools its patches to 256 vectors (section 3.1).

Dimension key: I images or views · N vectors of a view · C width of them · h w pixels
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.nn.resampler import Resampler, ResamplerConfig
from rebus.nn.vit import ViT, ViTConfig

QWEN_VIT = ViTConfig(
    image_size=448,
    width=1664,
    depth=48,
    mlp_hidden=8192,
    attention_bias="qkv",
    class_token=False,
    patch_bias=False,
    norm_before=True,
    position_grid=16,
)
"""Qwen-VL's ViT-G, 1.8 of its 1.9 billion parameters."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder; the defaults are Qwen-VL's."""

    trunk: ViTConfig = QWEN_VIT
    """The vision transformer."""
    pool: ResamplerConfig = field(
        default_factory=lambda: ResamplerConfig(grid=16, width=4096, source_width=1664, eps=1e-6)
    )
    """The resampler behind it."""

    @property
    def vectors(self) -> int:
        """Vectors of one view."""
        return self.pool.queries

    @property
    def width(self) -> int:
        """Width of these vectors."""
        return self.pool.width


@dataclass(frozen=True)
class PatchVisionConfig:
    """A vision transformer whose patch vectors are taken as they are, as in the mini family."""

    trunk: ViTConfig
    """The vision transformer."""

    @property
    def vectors(self) -> int:
        """Vectors of one view."""
        return self.trunk.grid**2

    @property
    def width(self) -> int:
        """Width of these vectors."""
        return self.trunk.width


class VisionEncoder(nn.Module):
    """Normalised pixels → x_INC, a square grid of vectors for each view. Frozen in all of SEED-X's stages."""

    def __init__(self, config: VisionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.pool.source_width != config.trunk.width:
            raise ValueError(
                "The pool takes vectors of another width than the vision transformer gives: "
                f"{config.pool.source_width} against {config.trunk.width}. Set `pool.source_width` to it."
            )
        self.config = config
        self.trunk = ViT(config.trunk, generator)
        self.pool = Resampler(config.pool, generator)
        self.norm = nn.LayerNorm(config.width, eps=config.trunk.eps)
        self.proj = nn.Linear(config.width, config.width, bias=False)
        with torch.no_grad():
            nn.init.normal_(self.proj.weight, std=config.width**-0.5, generator=generator)

    def forward(self, pixels_I3hw: Tensor) -> Tensor:
        """Views of any square size that the patches fill → x_INC. Raises ValueError as the vision transformer does."""
        return self.proj(self.norm(self.pool(self.trunk(pixels_I3hw))))


class PatchEncoder(nn.Module):
    """Normalised pixels → x_INC, the patch vectors without the class token."""

    def __init__(self, config: PatchVisionConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.trunk = ViT(config.trunk, generator)

    def forward(self, pixels_I3hw: Tensor) -> Tensor:
        """Views of the transformer's own size → x_INC. Raises ValueError as the vision transformer does."""
        return self.trunk(pixels_I3hw)[:, int(self.config.trunk.class_token) :]


def vision_encoder(
    config: VisionConfig | PatchVisionConfig, generator: torch.Generator | None = None
) -> VisionEncoder | PatchEncoder:
    """The vision encoder of a config, with random weights."""
    return VisionEncoder(config, generator) if isinstance(config, VisionConfig) else PatchEncoder(config, generator)


def pool_rows(x_INC: Tensor, count: int) -> Tensor:
    """The mean of every `count` vectors that follow each other: strips of the grid's rows, as SEED-X's image targets are
    (64 of 256; section 3.2)."""
    pooled_ICN = F.avg_pool1d(rearrange(x_INC, "i n c -> i c n"), count)
    return rearrange(pooled_ICN, "i c n -> i n c")
