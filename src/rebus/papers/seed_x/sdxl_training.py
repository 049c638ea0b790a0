"""How SEED-X's image decoder learns on SDXL, in both stages (appendix B).

    target ─ vision, pool_rows ─▶ features ─ adapter ─▶ tokens, vector ┐
    source ─ VAE ─▶ latent, or zeros ──────────────────────────────────┼─ UNet ─▶ noise, compared with what was added
    target ─ VAE ─▶ latent, made noisy ────────────────────────────────┘

Dimension key: I images · S features · C width · c latent channels · h w sides
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.checkpoint import convert, load_module, read_tensors
from rebus.data.edit_pairs import EditBatch
from rebus.data.pairs import needed
from rebus.diffusion.editing import noise_loss, widened
from rebus.diffusion.pipeline import Told, noising_alphas, read_diffusion
from rebus.diffusion.sdxl import whole_image
from rebus.errors import RebusError
from rebus.papers.seed_x.convert import vision_rules
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer, SdxlDetokenizerConfig
from rebus.papers.seed_x.tokenizer import SeedXTokenizer, SeedXTokenizerConfig
from rebus.papers.seed_x.vision import VisionConfig, pool_rows
from rebus.train import Losses

FIRST_STAGE_LEARNS = (
    "detokenizer.adapter.*",
    "detokenizer.diffusion.unet.*.to_k.*",
    "detokenizer.diffusion.unet.*.to_v.*",
)
"""The adapter, and all keys and values of the UNet, of its self-attention too."""
SECOND_STAGE_LEARNS = ("detokenizer.adapter.*", "detokenizer.diffusion.unet.*")


class SdxlTraining(nn.Module):
    """The image decoder, and the frozen tokenizer whose features it is told."""

    alphas_T: Tensor

    def __init__(
        self,
        tokenizer: SeedXTokenizer,
        detokenizer: SdxlDetokenizer,
        generator: torch.Generator,
        *,
        untold: float,
        unseen: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokenizer, self.detokenizer, self.generator = tokenizer, detokenizer, generator
        self.untold, self.unseen = untold, unseen
        alphas_T = noising_alphas(detokenizer.config.diffusion.scheduler)
        self.register_buffer("alphas_T", alphas_T, persistent=False)

    @torch.no_grad()
    def features(self, pixels_I3hw: Tensor, told_I: Tensor) -> Tensor:
        """x_ISC of pictures in −1..1; an image that is not told is the empty one, as guidance knows it: zeros once
        normalised."""
        config = self.tokenizer.config
        side = config.vision.trunk.image_size
        small = F.interpolate(pixels_I3hw, size=(side, side), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(x).to(small).view(3, 1, 1) for x in (config.mean, config.std))
        normal = ((small / 2 + 0.5).clamp(0, 1) - mean) / std
        return pool_rows(self.tokenizer.vision(normal * told_I.view(-1, 1, 1, 1).to(normal)), config.pooled)

    def losses(self, batch: EditBatch) -> Losses:
        """Squared error of the predicted noise. Some images are told nothing, some do not see their source, each by
        chance, so that guidance has something to lead away from."""
        model, generator = self.detokenizer, self.generator
        diffusion, pixels = model.diffusion, batch.target_I3hw
        count, size = len(pixels), (pixels.shape[-2], pixels.shape[-1])
        told_I, kept_I = (torch.rand(count, generator=generator) >= share for share in (self.untold, self.unseen))
        tokens_ISC, pooled_IP = model.adapter(self.features(pixels, told_I.to(pixels.device)))
        with torch.no_grad():
            posterior = diffusion.vae.encode(pixels.to(diffusion.vae.dtype)).latent_dist
            spread = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
            latents = (posterior.mean + posterior.std * spread) * diffusion.vae.config.scaling_factor
            extra = None
            if model.edits:
                seen_I = batch.seen_I.to(pixels.device) & kept_I.to(pixels.device)
                extra = diffusion.latents(batch.source_I3hw) * seen_I.view(-1, 1, 1, 1).to(latents)
        time_I = torch.randint(len(self.alphas_T), (count,), generator=generator).to(pixels.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        alpha = self.alphas_T[time_I].view(-1, 1, 1, 1).to(latents)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        sizes_I6 = whole_image(count, size, pixels.device)
        told = Told(tokens_ISC, pooled_IP=pooled_IP, sizes_I6=sizes_I6, extra_Iehw=extra)
        return Losses(noise_loss(diffusion, noisy, noise, time_I, told))


def begin_first(
    config: SdxlDetokenizerConfig,
    tokenizer: SeedXTokenizerConfig,
    vision: Path | None,
    pixels: Path | None,
    generator: torch.Generator,
) -> tuple[SeedXTokenizer, SdxlDetokenizer]:
    """The frozen tokenizer with the published vision encoder, and a fresh adapter on the SDXL folder `pixels`. Raises
    RebusError when a file was not named or does not fit."""
    if not isinstance(tokenizer.vision, VisionConfig):
        raise RebusError(
            f"SEED-X draws on SDXL from the features of Qwen-VL's vision encoder, but the config has a "
            f"{type(tokenizer.vision).__name__}. Use the tokenizer of a published variant."
        )
    seeing = SeedXTokenizer(tokenizer, generator=generator)
    file = needed("vision", vision, "the vision encoder's weights (qwen_vit_G.pt)")
    rules = vision_rules(tokenizer.vision.trunk.heads)
    load_module(seeing.vision, convert(read_tensors(file), rules, seeing.vision.state_dict()).tensors)
    seeing.eval().requires_grad_(False)
    diffusion, networks = read_diffusion(needed("pixels", pixels, "the folder of SDXL in the layout of diffusers"))
    made = SdxlDetokenizer(replace(config, diffusion=diffusion), generator=generator)
    load_module(made.diffusion, networks, dtype=torch.float32)
    made.empty_SC.copy_(seeing.blank().x_WNC[0])
    return seeing, made


def begin_second(first: SdxlDetokenizer, weights: Path) -> SdxlDetokenizer:
    """What the first stage left in `weights`, its UNet widened by the channels of a source."""
    held: dict[str, Any] = first.state_dict()
    prefix = "detokenizer."
    stored = {k.removeprefix(prefix): x for k, x in load_file(weights).items() if k.startswith(prefix)}
    first.load_state_dict({**held, **stored})
    unet, latent = first.diffusion.unet, first.diffusion.vae.config.latent_channels
    unet.conv_in = widened(unet.conv_in, latent)
    about = {**first.config.diffusion.unet, "in_channels": 2 * latent}
    config = replace(first.config, diffusion=replace(first.config.diffusion, unet=about))
    made = SdxlDetokenizer(config)
    made.load_state_dict(first.state_dict())
    return made
