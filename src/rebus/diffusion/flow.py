"""Rectified flow: the straight path from noise to data, its loss, and sampling with classifier-free guidance.

x_σ = (1 − σ) x + σ ε for σ in 0..1; the network predicts the velocity ε − x (2209.03003; logit-normal σ: 2403.03206).

Dimension key: I images · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rebus.diffusion.denoiser import Condition, Denoiser


def flow_loss(denoiser: Denoiser, x_Ichw: Tensor, condition: Condition, *, shift: float = 1.0) -> Tensor:
    """Mean squared error of the velocity at a random σ; `shift` > 1 spends more steps at high noise."""
    sigma_I = torch.sigmoid(torch.randn(len(x_Ichw), device=x_Ichw.device))
    sigma_I = shift * sigma_I / (1 + (shift - 1) * sigma_I)
    noise = torch.randn_like(x_Ichw)
    sigma = sigma_I.view(-1, 1, 1, 1)
    velocity = denoiser((1 - sigma) * x_Ichw + sigma * noise, sigma_I * 1000, condition)
    return F.mse_loss(velocity.float(), noise - x_Ichw)


def noise_like(shape: Sequence[int], generators: Sequence[torch.Generator], *, like: Tensor) -> Tensor:
    """Standard normal latents [I, *shape], each image from its own generator, so that a seed means one image
    whatever the batch."""
    rows = [torch.randn(*shape, generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device=like.device, dtype=like.dtype)


def sample(
    denoiser: Denoiser,
    noise_Ichw: Tensor,
    condition: Condition,
    empty: Condition,
    *,
    steps: int,
    guidance: float,
    shift: float = 1.0,
) -> Iterator[tuple[int, Tensor]]:
    """`integrate` with guidance g, which extrapolates from `empty` to `condition`: v = v_empty + g (v_condition − v_empty);
    1 runs one row only."""
    both = condition.cat(empty)

    def velocity(x: Tensor, time: Tensor, _: float) -> Tensor:
        if guidance == 1.0:
            return denoiser(x, time.expand(len(x)), condition)
        told, untold = denoiser(torch.cat([x, x]), time.expand(2 * len(x)), both).chunk(2)
        return untold + guidance * (told - untold)

    return integrate(velocity, noise_Ichw, steps=steps, shift=shift)


@torch.no_grad()
def integrate(
    velocity: Callable[[Tensor, Tensor, float], Tensor], noise_Ichw: Tensor, *, steps: int, shift: float = 1.0
) -> Iterator[tuple[int, Tensor]]:
    """Euler steps from noise to data, by what `velocity` makes of latents, their time and σ. Yields (steps done, the latent
    as it is expected to end) after each one."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps, device=noise_Ichw.device)
    x = noise_Ichw
    for k, time in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[k])
        predicted = velocity(x, time, sigma)
        yield k + 1, x - sigma * predicted
        x = scheduler.step(predicted, time, x, return_dict=False)[0]
