"""A published latent diffusion model, as SEED and LaVIT draw with: the UNet, VAE and sampler of a diffusers folder.

The UNet reads condition tokens by attention (text states, or vectors that stand for them) and, where it was built so, a
label that joins the time embedding (Stable unCLIP's image embedding), or a pooled vector and sizes (SDXL).

Dimension key: I images · S condition tokens · C token width · D label width · c latent channels · h w latent sides ·
H W height and width in pixels
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import diffusers
import PIL.Image
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from rebus.checkpoint import LazyTensors, Move, Rule, convert, lay_over, read_tensors
from rebus.diffusion.flow import noise_like
from rebus.errors import RebusError
from rebus.images import to_pil
from rebus.visual import Progress

SD_VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
"""The VAE of Stable Diffusion 1 and 2."""


@dataclass(frozen=True)
class DiffusionConfig:
    """The `config.json` of each component of a diffusers folder."""

    unet: Mapping[str, Any]
    """Of the UNet, a `UNet2DConditionModel`."""
    scheduler: Mapping[str, Any]
    """Of the sampler, with its `_class_name`."""
    vae: Mapping[str, Any] = field(default_factory=lambda: dict(SD_VAE))
    """Of the VAE, an `AutoencoderKL`."""


@dataclass(frozen=True, eq=False)
class Told:
    """What the UNet is told: condition tokens, and what else its kind takes."""

    tokens_ISC: Tensor
    label_ID: Tensor | None = None
    """A label that joins the time embedding (Stable unCLIP)."""
    seen_IS: Tensor | None = None
    """bool, which of the tokens may be looked at; none: all."""
    pooled_IP: Tensor | None = None
    """A vector of all that is told (SDXL)."""
    sizes_I6: Tensor | None = None
    """Original height and width, top and left of the crop, target height and width, in pixels (SDXL)."""
    extra_Iehw: Tensor | None = None
    """Joined to the noisy latent as further channels, whatever the noise: the latent of a source image (SEED-X)."""

    def _map(self, change: Callable[[Tensor], Tensor]) -> Told:
        given: dict[str, Any] = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return Told(**{name: change(x) for name, x in given.items()})

    def __getitem__(self, rows: slice) -> Told:
        """The conditions of some images."""
        return self._map(lambda x: x[rows])

    def to(self, like: Tensor) -> Told:
        """The same on the device and, but for what counts, with the dtype of `like`."""
        return self._map(lambda x: x.to(like) if x.is_floating_point() else x.to(like.device))

    def cat(self, other: Told) -> Told:
        """Both as one batch; they are of one kind."""
        given: dict[str, Any] = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return Told(**{name: torch.cat([x, getattr(other, name)]) for name, x in given.items()})


Predict = Callable[[Tensor, Tensor, float], Tensor]
"""Noisy latents as the UNet sees them, their time and σ (0 where the sampler counts otherwise) → what the sampler takes."""


class LatentDiffusion(nn.Module):
    """Conditions and noise → images, with the networks and the sampler of a published model."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet2DConditionModel.from_config(dict(config.unet))
        self.vae = AutoencoderKL.from_config(dict(config.vae))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latent that the UNet was trained for."""
        side = self.unet.config.sample_size
        return self.unet.config.out_channels, side, side

    def sample(
        self,
        noise_Ichw: Tensor,
        told: Told,
        untold: Told,
        *,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> Iterator[tuple[int, int, Tensor]]:
        """From noise to latents. Yields (calls of the UNet done, of how many, the noisy latents) after each call.

        `guidance` g extrapolates from `untold` to `told`: e = e_untold + g (e_told − e_untold); up to 1 only `told` is
        run. `generators`, one for each image, serve samplers that add noise at every step.
        """
        both = untold.cat(told)

        def predict(seen: Tensor, time: Tensor, _: float) -> Tensor:
            if guidance <= 1:
                return self.predict(seen, time, told)
            away, towards = self.predict(torch.cat([seen, seen]), time, both).chunk(2)
            return away + guidance * (towards - away)

        return self.denoise(noise_Ichw, predict, steps=steps, generators=generators)

    @torch.no_grad()
    def denoise(
        self, noise_Ichw: Tensor, predict: Predict, *, steps: int, generators: Sequence[torch.Generator]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """The sampler's steps with whatever `predict` makes of the UNet's answers; yields as `sample` does."""
        scheduler = make_scheduler(self.config.scheduler)
        scheduler.set_timesteps(steps, device=noise_Ichw.device)
        known = inspect.signature(scheduler.step).parameters
        options = {"generator": list(generators)} if "generator" in known else {}
        sigmas = getattr(scheduler, "sigmas", None)
        x = noise_Ichw * scheduler.init_noise_sigma
        for number, time in enumerate(scheduler.timesteps, 1):
            sigma = 0.0 if sigmas is None else float(sigmas[number - 1])
            predicted = predict(scheduler.scale_model_input(x, time), time, sigma)
            x = scheduler.step(predicted, time, x, return_dict=False, **options)[0]
            yield number, len(scheduler.timesteps), x

    def predict(self, x_Ichw: Tensor, time: Tensor, told: Told) -> Tensor:
        """The UNet's answer; its meaning (noise, velocity) is the sampler's."""
        if told.extra_Iehw is not None:
            x_Ichw = torch.cat([x_Ichw, told.extra_Iehw], dim=1)
        sizes = None if told.pooled_IP is None else {"text_embeds": told.pooled_IP, "time_ids": told.sizes_I6}
        return self.unet(
            x_Ichw,
            time,
            encoder_hidden_states=told.tokens_ISC,
            class_labels=told.label_ID,
            encoder_attention_mask=told.seen_IS,
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def pixels(self, latents_Ichw: Tensor) -> Tensor:
        """Latents → pixels_I3HW in −1..1."""
        latents_Ichw = (latents_Ichw / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(latents_Ichw, return_dict=False)[0].clamp(-1, 1)

    @torch.no_grad()
    def latents(self, pixels_I3HW: Tensor) -> Tensor:
        """Pixels in −1..1 → the mode of their latents, not scaled as the UNet's noisy latents are."""
        return self.vae.encode(pixels_I3HW.to(self.vae.dtype)).latent_dist.mode()

    def latent_of(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Channels, height and width of the latent of an image of `size` (height, width) in pixels.

        Raises RebusError for a size that the networks cannot halve as often as they do, or that is absurdly large.
        """
        step = 2 ** (len(self.vae.config.block_out_channels) - 1)
        least = step * 2 ** (len(self.unet.config.block_out_channels) - 1)
        most = 4 * step * self.unet.config.sample_size
        if any(side % least or not 0 < side <= most for side in size):
            raise RebusError(
                f"The image decoder draws images whose sides are multiples of {least}, up to {most} pixels, but "
                f"{size[0]} x {size[1]} (height x width) was asked for. Choose other sides."
            )
        return self.unet.config.out_channels, size[0] // step, size[1] // step


def draw(
    diffusion: LatentDiffusion,
    told: Told,
    untold: Told,
    generators: Sequence[torch.Generator],
    *,
    size: tuple[int, int],
    steps: int,
    guidance: float,
    batch: int,
) -> Iterator[Progress | PIL.Image.Image]:
    """`paint` with guidance away from `untold`, in batches of `batch` images."""
    like = diffusion.unet.conv_in.weight
    told, untold = told.to(like), untold.to(like)

    def sample(noise_Ichw: Tensor, rows: slice) -> Iterator[tuple[int, int, Tensor]]:
        own = generators[rows]
        return diffusion.sample(noise_Ichw, told[rows], untold[rows], steps=steps, guidance=guidance, generators=own)

    return paint(diffusion, sample, generators, size=size, steps=steps, batch=batch)


@torch.no_grad()
def paint(
    diffusion: LatentDiffusion,
    sample: Callable[[Tensor, slice], Iterator[tuple[int, int, Tensor]]],
    generators: Sequence[torch.Generator],
    *,
    size: tuple[int, int],
    steps: int,
    batch: int,
) -> Iterator[Progress | PIL.Image.Image]:
    """`Progress` after every step of every batch of images, then the images. An image begins as noise of its own generator
    and does not depend on the batch. `sample` denoises the noise of some rows of the images.

    Raises RebusError for a size that cannot be drawn, and for less than one step."""
    if steps < 1:
        raise RebusError(f"An image is drawn in at least one step, but {steps} were asked for. Use 20 to 50.")
    shape, like = diffusion.latent_of(size), diffusion.unet.conv_in.weight
    images: list[PIL.Image.Image] = []
    starts = range(0, len(generators), batch)
    for start in starts:
        rows = slice(start, start + batch)
        noise = latents = noise_like(shape, generators[rows], like=like)
        for done, of, now in sample(noise, rows):
            latents = now
            yield Progress(start // batch * of + done, of * len(starts))
        images += to_pil(diffusion.pixels(latents).float(), mean=(0.5,) * 3, std=(0.5,) * 3)
    yield from images


def make_scheduler(config: Mapping[str, Any]) -> Any:
    """The sampler that a `scheduler_config.json` describes. Raises RebusError when diffusers has none of its name."""
    name = str(config.get("_class_name", ""))
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise RebusError(
            f"The pipeline's sampler is {name or 'not named'!r}, which the installed diffusers {diffusers.__version__} "
            "does not have. Put another `_class_name` into scheduler_config.json, such as DDIMScheduler."
        )
    return kind.from_config(dict(config))


def noising_alphas(config: Mapping[str, Any]) -> Tensor:
    """Cumulative alphas_T of a DDPM schedule given by its config, float32."""
    return DDPMScheduler.from_config(dict(config)).alphas_cumprod


# ------------------------------------------------------------------------------------------------ reading a folder

_OLD_NAMES: tuple[Rule, ...] = tuple(
    Move(f"{{where*}}.attentions.{{n}}.{old}.{{p}}", f"{{where*}}.attentions.{{n}}.{new}.{{p}}")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
"""The VAE's attention was renamed after Stable Diffusion 1 and 2 were published."""


def read_diffusion(folder: Path) -> tuple[DiffusionConfig, LazyTensors]:
    """The configs and tensors of a diffusers folder with `unet`, `vae` and `scheduler`, tensors under the names of a
    `LatentDiffusion`. Raises RebusError when a component is not there, or does not fit its config."""
    config = DiffusionConfig(
        unet=component_config(folder, "unet"),
        scheduler=component_config(folder, "scheduler", "scheduler_config.json"),
        vae=component_config(folder, "vae"),
    )
    make_scheduler(config.scheduler)
    parts = {"unet": component_tensors(folder, "unet"), "vae": component_tensors(folder, "vae")}
    with torch.device("meta"):
        want = LatentDiffusion(config).state_dict()
    found = []
    for part, tensors in parts.items():
        keep = Move("{rest*}", f"{part}.{{rest*}}")
        renamed = tuple(Move(r.theirs, f"{part}.{r.ours}") for r in _OLD_NAMES if isinstance(r, Move))
        ours = {name: tensor for name, tensor in want.items() if name.startswith(f"{part}.")}
        found.append(convert(tensors, (*renamed, keep) if part == "vae" else (keep,), ours).tensors)
    return config, lay_over(*found)


def component_config(folder: Path, component: str, file: str = "config.json") -> dict[str, Any]:
    """The config of one component of a diffusers folder. Raises RebusError when it is not there or no JSON."""
    path = folder / component / file
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RebusError(
            f"{folder} is no whole diffusers folder: {component}/{file} cannot be read ({error}). Name the folder that "
            "holds model_index.json, with all its components."
        ) from None


def component_tensors(folder: Path, component: str) -> LazyTensors:
    """The weights of one component. Raises RebusError when there are none."""
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / component / name).exists():
            return read_tensors(folder / component / name)
    return read_tensors(folder / component)
