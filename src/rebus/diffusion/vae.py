"""The latent codec: images to standardised latents and back, with a diffusers `AutoencoderKL` inside.

Dimension key: I images · c latent channels · h w height and width in latents · H W height and width in pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn


@dataclass(frozen=True)
class VaeConfig:
    """The shape of an `AutoencoderKL`. The defaults are those of the mini family: 64 px to 16×16×4."""

    unshuffle: int = 2
    """Pixels of one side folded into channels before the first convolution (1 leaves the image as it is)."""
    channels: tuple[int, ...] = (64, 128)
    """Width of each resolution; every one after the first halves the side."""
    layers: int = 1
    """Residual blocks of each resolution."""
    latent_channels: int = 4
    """Channels of the latent."""
    mid_attention: bool = False
    """Self-attention at the lowest resolution."""


class LatentCodec(nn.Module):
    """A variational autoencoder whose latents have mean 0 and standard deviation 1 in every channel.

    The statistics are buffers, measured once after training (`measure`), so that diffusion sees standardised numbers.
    """

    mean_c: Tensor
    std_c: Tensor

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        folded = 3 * config.unshuffle**2
        self.vae = AutoencoderKL(
            in_channels=folded,
            out_channels=folded,
            down_block_types=("DownEncoderBlock2D",) * len(config.channels),
            up_block_types=("UpDecoderBlock2D",) * len(config.channels),
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            latent_channels=config.latent_channels,
            mid_block_add_attention=config.mid_attention,
        )
        self.register_buffer("mean_c", torch.zeros(config.latent_channels))
        self.register_buffer("std_c", torch.ones(config.latent_channels))

    def posterior(self, pixels_I3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [I, c, h, w] of the latent of pixels in −1..1, not standardised."""
        latent = self.vae.encode(F.pixel_unshuffle(pixels_I3HW, self.config.unshuffle)).latent_dist
        return latent.mean, latent.logvar

    def decode_raw(self, z_Ichw: Tensor) -> Tensor:
        """Pixels [I, 3, H, W] of latents that are not standardised; not clamped."""
        return F.pixel_shuffle(self.vae.decode(z_Ichw).sample, self.config.unshuffle)

    def encode(self, pixels_I3HW: Tensor) -> Tensor:
        """Standardised latents [I, c, h, w], the mode of the posterior, of pixels in −1..1."""
        mean, _ = self.posterior(pixels_I3HW)
        return (mean - self.mean_c[:, None, None]) / self.std_c[:, None, None]

    def decode(self, latents_Ichw: Tensor) -> Tensor:
        """Pixels [I, 3, H, W] in −1..1 of standardised latents."""
        return self.decode_raw(latents_Ichw * self.std_c[:, None, None] + self.mean_c[:, None, None]).clamp(-1, 1)

    @torch.no_grad()
    def measure(self, pixels_I3HW: Tensor) -> None:
        """Sets the statistics from a sample of images."""
        mean, _ = self.posterior(pixels_I3HW)
        self.mean_c.copy_(mean.mean((0, 2, 3)))
        self.std_c.copy_(mean.std((0, 2, 3)))
