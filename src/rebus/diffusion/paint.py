"""From noise to pictures with the mini family's denoiser and latent codec.

Dimension key: I images · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator

import PIL.Image
import torch
from torch import Tensor

from rebus.diffusion.denoiser import Condition, Denoiser
from rebus.diffusion.flow import sample
from rebus.diffusion.vae import LatentCodec
from rebus.errors import RebusError
from rebus.images import to_pil
from rebus.visual import Progress


@torch.no_grad()
def paint(
    denoiser: Denoiser,
    codec: LatentCodec,
    noise_Ichw: Tensor,
    told: Condition,
    empty: Condition,
    *,
    steps: int,
    guidance: float,
    shift: float,
) -> Iterator[Progress | PIL.Image.Image]:
    """`Progress` with a preview of the first image after every step, then the images; `guidance` and `shift` as in
    `flow.sample`. Raises RebusError for less than one step."""
    yield from show(
        codec, sample(denoiser, noise_Ichw, told, empty, steps=steps, guidance=guidance, shift=shift), steps=steps
    )


@torch.no_grad()
def show(
    codec: LatentCodec, drawing: Iterator[tuple[int, Tensor]], *, steps: int
) -> Iterator[Progress | PIL.Image.Image]:
    """The steps of `flow.integrate` as `paint` yields them. Raises RebusError for less than one step."""
    if steps < 1:
        raise RebusError(f"An image is drawn in at least one step, but {steps} were asked for. Use 4 to 50.")
    for step, latents in drawing:
        if step < steps:
            yield Progress(step, steps, pictures(codec, latents[:1])[0])
    yield Progress(steps, steps)
    yield from pictures(codec, latents)


def pictures(codec: LatentCodec, latents_Ichw: Tensor) -> list[PIL.Image.Image]:
    """Standardised latents → RGB images."""
    return to_pil(codec.decode(latents_Ichw), mean=(0.5,) * 3, std=(0.5,) * 3)
