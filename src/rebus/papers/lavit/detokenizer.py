"""LaVIT's detokenizer: codes become patch features, and these the condition of a latent diffusion model (section 3.1).

    ids_N ─ codebook, decoder ─▶ x_INC ─ head ─▶ tokens of Stable Diffusion 1.5's UNet, or tokens and a vector of SDXL's

Dimension key: I images · N patches · T codes of all images · S prompt tokens · C token width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.pipeline import DiffusionConfig, LatentDiffusion, Told, draw
from rebus.diffusion.sdxl import SDXL_UNET, SDXL_VAE, whole_image
from rebus.errors import RebusError
from rebus.nn.pooled_head import PooledHead
from rebus.papers.lavit.decoder import Decoder, DecoderConfig, TokenHead, decode_codes, pooled_head
from rebus.visual import ImageSampling, Progress, VisualTokens

DDIM: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The sampler's class is the published code's choice, whatever the folder's own config names."""
SD15 = DiffusionConfig(
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    scheduler=DDIM,
)
"""Stable Diffusion 1.5; conversion takes all but the sampler's class from the folder's own configs."""
SDXL = DiffusionConfig(unet=SDXL_UNET, scheduler=DDIM, vae=SDXL_VAE)
"""SDXL base; conversion takes all but the sampler's class from the folder's own configs."""

ASPECTS: dict[str, tuple[int, int]] = {
    "1:1": (1024, 1024),
    "4:3": (896, 1152),
    "3:2": (832, 1216),
    "16:9": (768, 1344),
    "2:3": (1216, 832),
    "3:4": (1152, 896),
}
"""Height and width in pixels for the aspect ratios (width : height) that the highres decoder was shown with."""


@dataclass(frozen=True)
class LowresConfig:
    """The image decoder on Stable Diffusion 1.5; drawing defaults are those of the published demos."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Codes → features."""
    codes: int = 16384
    """Entries of the codebook."""
    diffusion: DiffusionConfig = SD15
    """UNet, VAE and sampler."""
    tokens: int = 768
    """Width of the UNet's condition tokens."""
    empty: int = 77
    """Tokens of the empty prompt, which guidance leads away from."""
    size: tuple[int, int] = (512, 512)
    """Height and width in pixels unless asked otherwise."""
    steps: int = 25
    """Denoising steps unless asked otherwise."""
    guidance: float = 7.0
    """Guidance scale unless asked otherwise."""
    batch: int = 4
    """Images drawn side by side; an image does not depend on it."""


@dataclass(frozen=True)
class HighresConfig:
    """The image decoder on SDXL; drawing defaults are those of the published demos."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Codes → features."""
    codes: int = 16384
    """Entries of the codebook."""
    diffusion: DiffusionConfig = SDXL
    """UNet, VAE and sampler."""
    widths: tuple[int, int] = (768, 1280)
    """Widths of the two halves of the UNet's condition tokens; the second is also the pooled vector's."""
    size: tuple[int, int] = (1024, 1024)
    """Height and width in pixels unless asked otherwise; `ASPECTS` has those that the decoder was shown with."""
    steps: int = 25
    """Denoising steps unless asked otherwise."""
    guidance: float = 7.0
    """Guidance scale unless asked otherwise."""
    batch: int = 1
    """Images drawn side by side; an image does not depend on it."""


class LavitDetokenizer(nn.Module):
    """Codes → images. It has a codebook of its own, the tokenizer's, so that it can draw without the tokenizer; `source`
    names that tokenizer."""

    settings = frozenset({"steps", "guidance", "size"})
    """What it is told by `ImageSampling`."""

    codebook_KE: Tensor
    empty_1SC: Tensor

    def __init__(
        self,
        config: LowresConfig | HighresConfig,
        *,
        source: str = "lavit",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.source = source
        self.decoder = Decoder(config.decoder, generator)
        self.head: TokenHead | PooledHead
        if isinstance(config, LowresConfig):
            told = config.tokens
            self.head = TokenHead(config.decoder.width, told, generator)
            self.register_buffer("empty_1SC", torch.zeros(1, config.empty, told))
        else:
            told = sum(config.widths)
            self.head = pooled_head(config.decoder, config.widths, generator)
        self.diffusion = LatentDiffusion(config.diffusion)
        if self.diffusion.unet.config.cross_attention_dim != told:
            raise RebusError(
                f"The UNet reads tokens of width {self.diffusion.unet.config.cross_attention_dim}, but the decoder's head "
                f"gives tokens of width {told}. Use the configs of one variant."
            )
        self.register_buffer("codebook_KE", torch.zeros(config.codes, config.decoder.code_width))

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """`Progress` after every step, then one image for each of `tokens`. `sources` are not used. A negative image is
        what guidance leads away from; without one, nothing told. Raises RebusError for tokens that are not codes of this
        model's tokenizer, and for steps or a size that cannot be."""
        if not tokens:
            return
        config = self.config
        size = sampling.size or config.size
        told, untold = self.conditions(tokens, negatives, size)
        yield from draw(
            self.diffusion,
            told,
            untold,
            generators,
            size=size,
            steps=config.steps if sampling.steps is None else sampling.steps,
            guidance=config.guidance if sampling.guidance is None else sampling.guidance,
            batch=config.batch,
        )

    @torch.no_grad()
    def conditions(
        self, tokens: Sequence[VisualTokens], negatives: Sequence[VisualTokens | None], size: tuple[int, int]
    ) -> tuple[Told, Told]:
        """What the UNet is told of the images, and what guidance leads away from."""
        told = self.told(self.features(tokens), size)
        untold = self.untold(told)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            away = self.told(self.features([token for token in negatives if token is not None]), size)
            for name in ("tokens_ISC", "pooled_IP", "seen_IS"):
                if (values := getattr(untold, name)) is not None:
                    values[given] = getattr(away, name)
        return told, untold

    def features(self, tokens: Sequence[VisualTokens]) -> Tensor:
        """Codes → features x_INC as the vision encoder might have given them. Raises RebusError as `decode` does."""
        return decode_codes(self.decoder, self.codebook_KE, tokens, self.source)

    def told(self, x_INC: Tensor, size: tuple[int, int]) -> Told:
        """What the UNet is told of features, for an image of `size` (height, width)."""
        if isinstance(self.head, TokenHead):
            tokens_INC = self.head(x_INC)
            return Told(tokens_INC, seen_IS=torch.ones_like(tokens_INC[..., 0], dtype=torch.bool))
        tokens_INC, pooled_IP = self.head(x_INC)
        sizes_I6 = whole_image(len(x_INC), size, x_INC.device)
        return Told(tokens_INC, pooled_IP=pooled_IP, sizes_I6=sizes_I6)

    def untold(self, told: Told) -> Told:
        """What stands for nothing told: the empty prompt's tokens and nothing behind them; for SDXL zeros."""
        nothing = torch.zeros_like(told.tokens_ISC)
        if told.pooled_IP is not None:
            return Told(nothing, pooled_IP=torch.zeros_like(told.pooled_IP), sizes_I6=told.sizes_I6)
        count = min(self.empty_1SC.shape[1], nothing.shape[1])
        nothing[:, :count] = self.empty_1SC[:, :count].to(nothing)
        return Told(
            nothing, seen_IS=(torch.arange(nothing.shape[1], device=nothing.device) < count).repeat(len(nothing), 1)
        )
