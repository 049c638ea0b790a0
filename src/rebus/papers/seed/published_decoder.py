"""The image decoders that SEED was published with, both Stable Diffusion (SEED section 3.1, SEED-LLaMA section 3.1).

    SEED-2   ids_N ─ codebook, decoder, head ─▶ image embedding ─ noise level ─▶ label of Stable unCLIP 2.1
    SEED v1  ids_N ─ codebook, decoder, Reverse Q-Former ─▶ 77 vectors in place of the prompt's of SD 1.4

Dimension key: I images · N codes · S prompt tokens · C token width · D width of the image embedding · c latent channels ·
h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.flow import noise_like
from rebus.diffusion.pipeline import DiffusionConfig, LatentDiffusion, Told, noising_alphas
from rebus.diffusion.unclip import UnclipCondition
from rebus.errors import RebusError
from rebus.images import to_pil
from rebus.papers.seed.detokenizer import code_ids
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.visual import ImageSampling, Progress, VisualTokens

Latents = Literal["generator", "fixed"]

_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
SD21_UNCLIP = DiffusionConfig(
    unet={
        **_UNET,
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 2048,
    },
    scheduler={
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
)
"""stable-diffusion-2-1-unclip; conversion takes all of it from the folder's own configs."""
SD14 = DiffusionConfig(
    unet={**_UNET, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    scheduler={
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    },
)
"""stable-diffusion-v1-4; conversion takes all of it from the folder's own configs."""
SQUARED_COSINE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class UnclipConfig:
    """SEED-2's image decoder; the drawing defaults are those of the published inference code."""

    diffusion: DiffusionConfig = SD21_UNCLIP
    """UNet, VAE and sampler."""
    noising: Mapping[str, Any] = field(default_factory=lambda: dict(SQUARED_COSINE))
    """Schedule by which the image embedding is made noisy, a DDPM scheduler's config."""
    prompt: tuple[int, int] = (77, 1024)
    """Tokens of the empty prompt, and their width."""
    steps: int = 20
    """Denoising steps unless asked otherwise."""
    guidance: float = 10.0
    """Guidance scale unless asked otherwise."""
    noise_level: int = 0
    """Noise added to the image embedding unless asked otherwise; even level 0 adds a little."""
    latents: Latents = "generator"
    """The noise that an image begins as. `generator`: its own generator's. `fixed`: one and the same for every image,
    as the published code draws it once when it starts."""
    latents_seed: int = 0
    """Seed of the `fixed` noise. (The published code takes whatever the global generator gives.)"""
    batch: int = 4
    """Images drawn side by side; an image does not depend on it."""


@dataclass(frozen=True)
class TextLikeConfig:
    """SEED v1's image decoder. The paper names the model; steps and guidance are our choice, that model's own."""

    diffusion: DiffusionConfig = SD14
    """UNet, VAE and sampler."""
    prompt: tuple[int, int] = (77, 768)
    """Vectors that stand for a prompt, and their width."""
    steps: int = 50
    """Denoising steps unless asked otherwise."""
    guidance: float = 7.5
    """Guidance scale unless asked otherwise."""
    latents: Latents = "generator"
    """The noise that an image begins as, as in `UnclipConfig`."""
    latents_seed: int = 0
    """Seed of the `fixed` noise."""
    batch: int = 4
    """Images drawn side by side; an image does not depend on it."""


class UnclipDetokenizer(nn.Module):
    """Codes → images through one image embedding. `codes` is the tokenizer that holds the codebook and the way from
    codes to an image embedding; nothing else of it is used."""

    settings = frozenset({"steps", "guidance", "noise_level"})
    """What it is told by `ImageSampling`."""

    prompt_1SC: Tensor

    def __init__(self, config: UnclipConfig, codes: SeedTokenizer) -> None:
        super().__init__()
        width = codes.config.image_width
        self.config = config
        self.codes = codes
        self.diffusion = LatentDiffusion(config.diffusion)
        label = self.diffusion.unet.config.projection_class_embeddings_input_dim
        if label != 2 * width:
            raise RebusError(
                f"The image decoder takes labels of {label} numbers, but the tokenizer's image embeddings make labels of "
                f"{2 * width} (embedding and noise level). Name the Stable unCLIP model that belongs to this tokenizer."
            )
        self.unclip = UnclipCondition(width, noising_alphas(config.noising))
        self.register_buffer("prompt_1SC", torch.zeros(1, *config.prompt))

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
        what guidance leads away from; without one, a label of zeros. Raises RebusError for tokens that are not codes of
        this tokenizer, and for steps or a noise level that cannot be."""
        if tokens:
            told, untold = self.conditions(tokens, negatives, generators, sampling)
            yield from _paint(self.diffusion, self.config, told, untold, generators, sampling)

    @torch.no_grad()
    def conditions(
        self,
        tokens: Sequence[VisualTokens],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> tuple[Told, Told]:
        """What the UNet is told of the images, and what guidance leads away from."""
        level = sampling.noise_level if sampling.noise_level is not None else self.config.noise_level
        prompt_ISC = self.prompt_1SC.expand(len(tokens), -1, -1)
        embedding_ID = self.embeddings(tokens)
        noise_ID = noise_like(embedding_ID.shape[1:], generators, like=embedding_ID)
        label_ID = self.unclip(embedding_ID, level, noise_ID)
        away_ID = torch.zeros_like(label_ID)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            chosen = [token for token in negatives if token is not None]
            # the same noise: with noise of its own, a negative image would change what the image begins as
            away_ID[given] = self.unclip(self.embeddings(chosen), level, noise_ID[given])
        return Told(prompt_ISC, label_ID), Told(prompt_ISC, away_ID)

    def embeddings(self, tokens: Sequence[VisualTokens]) -> Tensor:
        """Codes → image embeddings [I, D]."""
        return self.codes.image_embedding(code_ids(tokens, self.codes).to(self.prompt_1SC.device))


class TextLikeDetokenizer(nn.Module):
    """Codes → images through vectors that stand for the states of a prompt. `codes` as in `UnclipDetokenizer`."""

    settings = frozenset({"steps", "guidance"})
    """What it is told by `ImageSampling`."""

    prompt_1SC: Tensor

    def __init__(self, config: TextLikeConfig, codes: SeedTokenizer) -> None:
        super().__init__()
        given = (codes.config.reverse_queries, codes.config.image_width)
        if codes.config.head != "reverse" or given != config.prompt:
            raise RebusError(
                f"The image decoder reads prompts of {config.prompt} (vectors, width), but this tokenizer's head is "
                f"{codes.config.head!r} and gives {given}. Use SEED v1's tokenizer, or the other image decoder."
            )
        self.config = config
        self.codes = codes
        self.diffusion = LatentDiffusion(config.diffusion)
        self.register_buffer("prompt_1SC", torch.zeros(1, *config.prompt))

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """As `UnclipDetokenizer.decode`; without a negative image, guidance leads away from the empty prompt."""
        if tokens:
            told, untold = self.conditions(tokens, negatives)
            yield from _paint(self.diffusion, self.config, told, untold, generators, sampling)

    @torch.no_grad()
    def conditions(self, tokens: Sequence[VisualTokens], negatives: Sequence[VisualTokens | None]) -> tuple[Told, Told]:
        """What the UNet is told of the images, and what guidance leads away from."""
        away_ISC = self.prompt_1SC.repeat(len(tokens), 1, 1)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            away_ISC[given] = self.prompts([token for token in negatives if token is not None]).to(away_ISC.dtype)
        return Told(self.prompts(tokens)), Told(away_ISC)

    def prompts(self, tokens: Sequence[VisualTokens]) -> Tensor:
        """Codes → prompt_ISC."""
        return self.codes.image_embedding(code_ids(tokens, self.codes).to(self.prompt_1SC.device))


@torch.no_grad()
def _paint(
    diffusion: LatentDiffusion,
    config: UnclipConfig | TextLikeConfig,
    told: Told,
    untold: Told,
    generators: Sequence[torch.Generator],
    sampling: ImageSampling,
) -> Iterator[Progress | PIL.Image.Image]:
    """`Progress` after every step of every batch, then the images."""
    steps = sampling.steps if sampling.steps is not None else config.steps
    guidance = sampling.guidance if sampling.guidance is not None else config.guidance
    if steps < 1:
        raise RebusError(f"An image is drawn in at least one step, but {steps} were asked for. Use 20 to 50.")
    like = diffusion.unet.conv_in.weight
    told, untold = told.to(like), untold.to(like)
    images: list[PIL.Image.Image] = []
    starts = range(0, len(generators), config.batch)
    for start in starts:
        rows = slice(start, start + config.batch)
        own = generators[rows]
        noise = latents = noise_like(diffusion.latent_shape, _beginnings(config, own), like=like)
        drawing = diffusion.sample(noise, told[rows], untold[rows], steps=steps, guidance=guidance, generators=own)
        for done, of, now in drawing:
            latents = now
            yield Progress(start // config.batch * of + done, of * len(starts))
        images += to_pil(diffusion.pixels(latents).float(), mean=(0.5,) * 3, std=(0.5,) * 3)
    yield from images


def _beginnings(config: UnclipConfig | TextLikeConfig, generators: Sequence[torch.Generator]) -> list[torch.Generator]:
    """The generators that the first noise of each image comes from."""
    if config.latents == "generator":
        return list(generators)
    return [torch.Generator().manual_seed(config.latents_seed) for _ in generators]
