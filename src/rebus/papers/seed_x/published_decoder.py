"""The image decoders that SEED-X was published with, both on SDXL: the first draws an image from its features, the second
may keep what a source image shows (sections 3.1 and 3.4, appendix B).

    x_1NC ─ adapter ─▶ tokens, vector ─┐
    source ─ VAE ─▶ extra channels ────┴─ UNet, three rows of guidance ─ VAE ─▶ pixels

Dimension key: I images · W views (one) · N features · S latents · C width · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.editing import EditGuidance, sample_edit
from rebus.diffusion.pipeline import DiffusionConfig, LatentDiffusion, Told, paint
from rebus.diffusion.sdxl import SDXL_SCHEDULER, SDXL_UNET, SDXL_VAE, whole_image
from rebus.errors import RebusError
from rebus.images import prepare
from rebus.papers.seed_x.adapter import Adapter, AdapterConfig
from rebus.visual import Features, ImageSampling, Progress, VisualTokens

HALF = (0.5, 0.5, 0.5)
FIRST_STAGE = DiffusionConfig(SDXL_UNET, SDXL_SCHEDULER, SDXL_VAE)
"""SDXL base; conversion takes all of it from the folder's own configs."""
SECOND_STAGE = DiffusionConfig({**SDXL_UNET, "in_channels": 8}, SDXL_SCHEDULER, SDXL_VAE)
"""The same with four more input channels, for the latent of a source image."""


@dataclass(frozen=True)
class SdxlDetokenizerConfig:
    """An image decoder on SDXL; drawing defaults are those of the published inference code."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Features → what the UNet is told."""
    diffusion: DiffusionConfig = FIRST_STAGE
    """UNet, VAE and sampler. A UNet with more input channels than it puts out sees a source image."""
    slots: int = 64
    """Features of the image that guidance leads away from."""
    size: tuple[int, int] = (1024, 1024)
    """Height and width in pixels unless asked otherwise."""
    steps: int = 50
    """Denoising steps unless asked otherwise."""
    guidance: float = 7.5
    """Guidance towards what is told, unless asked otherwise; 1 and less runs one row only."""
    image_guidance: float = 1.5
    """Guidance towards the source image, unless asked otherwise; less than 1 runs one row only."""
    rescale: float = 0.0
    """Share of the guided prediction that is scaled back to the spread of the unguided one."""
    batch: int = 1
    """Images drawn side by side; an image does not depend on it."""

    @property
    def source_channels(self) -> int:
        """Input channels for the latent of a source image; 0: the decoder does not edit."""
        return int(self.diffusion.unet["in_channels"]) - int(self.diffusion.unet["out_channels"])


class SdxlDetokenizer(nn.Module):
    """Features → images. `source` names the tokenizer whose features they are.

    `empty_SC` are the features of an image whose normalised pixels are zero, from which guidance leads away; whoever
    builds the detokenizer fills it (`tokenizer.blank()`).
    """

    empty_SC: Tensor

    def __init__(
        self, config: SdxlDetokenizerConfig, *, source: str = "seed_x", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.source = source
        self.adapter = Adapter(config.adapter, generator)
        self.diffusion = LatentDiffusion(config.diffusion)
        width, wanted = sum(config.adapter.widths), self.diffusion.unet.config.cross_attention_dim
        if width != wanted:
            raise RebusError(
                f"The UNet reads tokens of width {wanted}, but the adapter gives tokens of width {width}. "
                "Use the configs of one variant."
            )
        channels = self.diffusion.vae.config.latent_channels
        if config.source_channels not in (0, channels):
            raise RebusError(
                f"A source image has {channels} latent channels, but the UNet has room for {config.source_channels}. "
                f"Use a UNet with {channels} or {2 * channels} input channels."
            )
        self.register_buffer("empty_SC", torch.zeros(config.slots, config.adapter.in_width))

    @property
    def edits(self) -> bool:
        """Whether it keeps what a source image shows (second stage)."""
        return self.config.source_channels > 0

    @property
    def settings(self) -> frozenset[str]:
        """What it is told by `ImageSampling`; how a source is kept only where it sees one."""
        return frozenset({"steps", "guidance", "size", *(("image_guidance",) if self.edits else ())})

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """`Progress` after every step of every batch, then one image for each of `tokens`. The second stage keeps what a
        source shows, where one is given; the first does not look at them. Guidance leads away from a negative image, or
        from `empty_SC`. Raises RebusError for tokens that are not features of this model's tokenizer, and for steps or a
        size that cannot be."""
        if not tokens:
            return
        c = self.config
        size = sampling.size or c.size
        steps = c.steps if sampling.steps is None else sampling.steps
        guidance = self.guidance(sampling)
        self.diffusion.latent_of(size)  # raises before anything is computed
        told, untold = self.conditions(tokens, sources, negatives, size)

        def sample(noise_Ichw: Tensor, rows: slice) -> Iterator[tuple[int, int, Tensor]]:
            own = generators[rows]
            return sample_edit(
                self.diffusion, noise_Ichw, told[rows], untold[rows], guidance=guidance, steps=steps, generators=own
            )

        yield from paint(self.diffusion, sample, generators, size=size, steps=steps, batch=c.batch)

    def guidance(self, sampling: ImageSampling) -> EditGuidance:
        """What is asked for, else the config's. Without sources there is nothing to be led to but what is told."""
        c = self.config
        text = c.guidance if sampling.guidance is None else sampling.guidance
        image = c.image_guidance if sampling.image_guidance is None else sampling.image_guidance
        return EditGuidance(text, image if self.edits else 1.0, c.rescale)

    @torch.no_grad()
    def conditions(
        self,
        tokens: Sequence[VisualTokens],
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        size: tuple[int, int],
    ) -> tuple[Told, Told]:
        """What the UNet is told of the images, and what guidance leads away from; both see the sources."""
        like = self.diffusion.unet.conv_in.weight
        extra_Iehw = self.source_latents(sources, size) if self.edits else None
        empty = Features(self.empty_SC[None], self.source)
        away = [empty if token is None else token for token in negatives]
        told, untold = (self.told(which, size, extra_Iehw).to(like) for which in (tokens, away))
        return told, untold

    def told(self, tokens: Sequence[VisualTokens], size: tuple[int, int], extra_Iehw: Tensor | None) -> Told:
        """What the UNet is told of features, for images of `size` (height, width)."""
        weight = self.adapter.proj_in.weight
        rows = read_features(tokens, self.source, self.config.adapter.in_width)
        # one by one: images may have different numbers of features (64 of an image drawn, 256 of a view)
        both = [self.adapter(x_1NC.to(weight)) for x_1NC in rows]
        tokens_ISC, pooled_IP = (torch.cat(parts) for parts in zip(*both, strict=True))
        sizes_I6 = whole_image(len(rows), size, weight.device)
        return Told(tokens_ISC, pooled_IP=pooled_IP, sizes_I6=sizes_I6, extra_Iehw=extra_Iehw)

    def source_latents(self, sources: Sequence[PIL.Image.Image | None], size: tuple[int, int]) -> Tensor:
        """The latents of sources, stretched to `size`; zeros where there is none. As published they are not scaled, as
        the noisy latents are."""
        device = self.adapter.proj_in.weight.device
        latents = torch.zeros(len(sources), *self.diffusion.latent_of(size), device=device)
        for number, picture in enumerate(sources):
            if picture is not None:  # one by one: at 1,024 pixels the VAE takes gigabytes
                pixels = prepare([picture], size, resize="bicubic", mean=HALF, std=HALF).to(device)
                latents[number] = self.diffusion.latents(pixels)[0].to(latents)
        return latents


def read_features(tokens: Sequence[VisualTokens], source: str, width: int) -> list[Tensor]:
    """The features x_1NC of each image to be drawn. Raises RebusError for anything but one view of features of the
    tokenizer `source`, of this width and all finite."""
    rows = []
    for number, token in enumerate(tokens, 1):
        which = f"image {number} of {len(tokens)}"
        if not isinstance(token, Features):
            raise RebusError(
                f"SEED-X draws from features, but {which} is {type(token).__name__}. Tokenize it with this model's "
                "tokenizer, for generation."
            )
        if token.source != source:
            raise RebusError(
                f"{which.capitalize()} holds features of {token.source!r}, but this detokenizer belongs to {source!r}. "
                "Tokenize the image again with this model."
            )
        x = token.x_WNC
        if x.ndim != 3 or len(x) != 1 or x.shape[1] == 0 or x.shape[2] != width:
            raise RebusError(
                f"SEED-X draws an image from one view of vectors of width {width}, but {which} has the shape "
                f"{list(x.shape)}. Tokenize it for generation, not for understanding."
            )
        if not bool(torch.isfinite(x).all()):
            raise RebusError(f"The features of {which} hold numbers that are not finite. Tokenize the image again.")
        rows.append(x)
    return rows


def stage_of(unet: Mapping[str, Any]) -> int:
    """1 or 2, by the UNet's config."""
    return 1 if int(unet["in_channels"]) == int(unet["out_channels"]) else 2
