"""Guidance over three rows, for denoisers that see a source image's latent beside the noisy one (SEED-X; InstructPix2Pix,
2211.09800), the widening of a network's first layer that makes it such a one, and the loss that a UNet learns by.

Dimension key: I images · c latent channels · e extra channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser
from rebus.diffusion.flow import integrate
from rebus.diffusion.pipeline import LatentDiffusion, Told


@dataclass(frozen=True)
class EditGuidance:
    """How far a drawing is led towards what is told, and towards the source image."""

    text: float
    """Away from nothing told, where both see the source: 1 and less draws with one row only."""
    image: float
    """Away from no source, where nothing is told in both: less than 1 draws with one row only."""
    rescale: float = 0.0
    """Share of the guided prediction that is scaled back to the spread of the unguided one."""

    @property
    def on(self) -> bool:
        """Whether there are three rows."""
        return self.text > 1 and self.image >= 1


@dataclass(frozen=True)
class Kept:
    """Where sources are laid over what is drawn."""

    source_Ichw: Tensor
    """Their latents."""
    share_I1hw: Tensor
    """1: kept as it is, 0: drawn."""

    def over(self, clean_Ichw: Tensor) -> Tensor:
        """A predicted image with its source laid over it."""
        return clean_Ichw + self.share_I1hw * (self.source_Ichw - clean_Ichw)


def sample_edit(
    diffusion: LatentDiffusion,
    noise_Ichw: Tensor,
    told: Told,
    untold: Told,
    *,
    guidance: EditGuidance,
    steps: int,
    generators: Sequence[torch.Generator],
) -> Iterator[tuple[int, int, Tensor]]:
    """From noise to latents by three rows in one batch; yields as `LatentDiffusion.sample` does.

        A  told, with the source        B  untold, with the source        C  untold, with zeros for the source
        e = C + text (A − B) + image (B − C)

    `told` and `untold` hold the source's latent as extra channels: zeros where there is none, and B is C. Without any
    extra channels, and where `image` is 1, so that it has no weight, C is not run.
    """
    if not guidance.on:
        return diffusion.sample(noise_Ichw, told, untold, steps=steps, guidance=1.0, generators=generators)
    rows = [told, untold]
    if untold.extra_Iehw is not None and guidance.image != 1:
        rows.append(replace(untold, extra_Iehw=torch.zeros_like(untold.extra_Iehw)))
    all_rows = rows[0].cat(rows[1]) if len(rows) == 2 else rows[0].cat(rows[1]).cat(rows[2])

    def predict(seen: Tensor, time: Tensor, sigma: float) -> Tensor:
        parts = diffusion.predict(torch.cat([seen] * len(rows)), time, all_rows).chunk(len(rows))
        return _led(parts, guidance, seen * (sigma**2 + 1) ** 0.5, sigma)

    return diffusion.denoise(noise_Ichw, predict, steps=steps, generators=generators)


def sample_edit_flow(
    denoiser: Denoiser,
    noise_Ichw: Tensor,
    told: Condition,
    untold: Condition,
    *,
    guidance: EditGuidance,
    kept: Kept | None = None,
    steps: int,
    shift: float = 1.0,
) -> Iterator[tuple[int, Tensor]]:
    """The same for rectified flow, whose third row is told nothing at all; yields as `flow.sample` does. What is `kept` is laid over
    the image predicted at each step."""
    count = 2 if guidance.image == 1 else 3
    rows = told.cat(untold) if count == 2 else told.cat(untold).cat(told.zeros())

    def velocity(x: Tensor, time: Tensor, sigma: float) -> Tensor:
        if guidance.on:
            parts = denoiser(torch.cat([x] * count), time.expand(count * len(x)), rows).chunk(count)
            predicted = _led(parts, guidance, x, sigma)
        else:
            predicted = denoiser(x, time.expand(len(x)), told)
        return predicted if kept is None else (x - kept.over(x - sigma * predicted)) / sigma

    return integrate(velocity, noise_Ichw, steps=steps, shift=shift)


def _led(parts: Sequence[Tensor], guidance: EditGuidance, x_Ichw: Tensor, sigma: float) -> Tensor:
    """Two or three rows' predictions as one. x − σ · prediction is the image predicted, for noise and velocity alike."""
    a, b, c = (*parts, parts[1])[:3]
    guided = c + guidance.text * (a - b) + guidance.image * (b - c)
    if guidance.rescale == 0:
        return guided
    # as in the published pipeline, the spread that is scaled back is that of the image predicted
    clean, plain = x_Ichw - sigma * guided, x_Ichw - sigma * a
    spread = plain.std((1, 2, 3), keepdim=True) / clean.std((1, 2, 3), keepdim=True)
    return (x_Ichw - (guidance.rescale * spread + 1 - guidance.rescale) * clean) / sigma


@torch.no_grad()
def widened(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The layer with `channels` more input channels, to which it is blind until it learns: their weights are zero. The
    bias stays. (The published code begins with a fresh random bias.)"""
    wide = nn.Conv2d(
        conv.in_channels + channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    wide.weight.zero_()
    wide.weight[:, : conv.in_channels] = conv.weight
    if conv.bias is not None and wide.bias is not None:
        wide.bias.copy_(conv.bias)
    return wide


def noise_loss(
    diffusion: LatentDiffusion, noisy_Ichw: Tensor, noise_Ichw: Tensor, time_I: Tensor, told: Told
) -> Tensor:
    """Mean squared error of the predicted noise, in float32."""
    return F.mse_loss(diffusion.predict(noisy_Ichw, time_I, told).float(), noise_Ichw.float())
