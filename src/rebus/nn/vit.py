"""A vision transformer: the encoder of EVA-CLIP ViT-g (SEED, LaVIT) and the trunk of Qwen-VL's ViT-G (SEED-X).

Both are plain pre-norm transformers over 14-pixel patches without a norm at the end; what differs is in `ViTConfig`.

Dimension key: I images · N tokens (class token first, then patches row by row) · C width · h w pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.nn.attention import AttentionBias, Block, init_transformer


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer. The defaults are EVA-CLIP ViT-g as SEED uses it (39 of its 40 blocks)."""

    image_size: int = 224
    """Side of the square image in pixels."""
    patch: int = 14
    """Side of a patch in pixels."""
    width: int = 1408
    """Width of the token vectors."""
    depth: int = 39
    """Number of blocks."""
    heads: int = 16
    """Attention heads."""
    mlp_hidden: int = 6144
    """Hidden width of the feed-forward."""
    eps: float = 1e-6
    """Epsilon of the layer norms."""
    attention_bias: AttentionBias = "qv"
    """Which of query, key and value have a bias."""
    class_token: bool = True
    """Whether a learned token is put before the patches."""
    patch_bias: bool = True
    """Whether the patch embedding has a bias."""
    norm_before: bool = False
    """Whether a layer norm follows the position embedding (Qwen-VL)."""
    position_grid: int | None = None
    """Side of the learned position table. None: the side of the patch grid, and images of another size are refused;
    a number: the table is resized to the grid of every image (Qwen-VL: 16)."""

    @property
    def grid(self) -> int:
        """Patches along one side of an image of `image_size`."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Length of the output for an image of `image_size`."""
        return self.grid**2 + self.class_token


class ViT(nn.Module):
    """Images → token vectors, the output of the last block: no final norm, no pooling, no head."""

    def __init__(self, config: ViTConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.image_size % config.patch or config.width % config.heads:
            raise ValueError(
                "A vision transformer needs patches that fill the image and heads that fill the width, but these do "
                f"not: image {config.image_size}, patch {config.patch}; width {config.width}, heads {config.heads}. "
                "Choose a patch that divides the image size and a number of heads that divides the width."
            )
        self.config = config
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch, bias=config.patch_bias)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        positions = (config.position_grid or config.grid) ** 2 + config.class_token
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, config.width))
        self.norm_before = nn.LayerNorm(config.width, eps=config.eps) if config.norm_before else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_hidden, eps=config.eps, bias=config.attention_bias)
            for _ in range(config.depth)
        )
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Random weights for training from scratch, as EVA-CLIP's."""
        init_transformer(self.blocks, generator)
        nn.init.trunc_normal_(self.patch_embed.weight, std=0.02, generator=generator)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        if self.config.class_token:
            nn.init.trunc_normal_(self.cls_token, std=0.02, generator=generator)

    def embed(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → x_INC with positions, before the first block.

        Raises ValueError when the size of the image is not one that the position table serves.
        """
        height, width = pixels_I3hw.shape[-2:]
        size, free = self.config.image_size, self.config.position_grid is not None
        if height != width or height % self.config.patch or (height != size and not free):
            raise ValueError(
                f"This vision transformer reads {'square' if free else f'{size} x {size}'} images in patches of "
                f"{self.config.patch}, but got {height} x {width} pixels. Resize the image first."
            )
        x_IChw = self.patch_embed(pixels_I3hw.to(self.patch_embed.weight.dtype))
        x_INC = rearrange(x_IChw, "i c h w -> i (h w) c")
        if self.config.class_token:
            x_INC = torch.cat([self.cls_token.expand(len(x_INC), -1, -1), x_INC], dim=1)
        position_1NC = resize_positions(self.pos_embed, x_IChw.shape[-1], extra=int(self.config.class_token))
        return self.norm_before(x_INC + position_1NC)

    def forward(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → x_INC, class token first where there is one. Raises as `embed` does."""
        x_INC = self.embed(pixels_I3hw)
        for block in self.blocks:
            x_INC = block(x_INC)
        return x_INC


def resize_positions(position_1NC: Tensor, grid: int, *, extra: int) -> Tensor:
    """A learned position table for another number of patches: the first `extra` rows are kept, the others are a square
    grid and resized to `grid` x `grid` by bicubic interpolation in float32 (as BEiT, EVA and Qwen-VL do)."""
    kept_1XC, grid_1NC = position_1NC[:, :extra], position_1NC[:, extra:]
    side = round(grid_1NC.shape[1] ** 0.5)
    if side == grid:
        return position_1NC
    grid_1Chw = rearrange(grid_1NC.float(), "b (h w) c -> b c h w", h=side)
    grid_1Chw = F.interpolate(grid_1Chw, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([kept_1XC, rearrange(grid_1Chw, "b c h w -> b (h w) c").to(kept_1XC.dtype)], dim=1)
