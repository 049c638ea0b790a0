"""SEED's detokenizer: 32 codes become one image embedding, and an unCLIP diffusion model draws it
(SEED-LLaMA section 3.1).

    ids_N ─ codebook, decoder, head ─▶ image embedding ─ noise level ─▶ condition ─ denoiser, VAE ─▶ pixels

Dimension key: I images · N codes · D width of the image embedding · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import DraftConfig, DraftDecoder
from rebus.diffusion.flow import noise_like
from rebus.diffusion.paint import paint
from rebus.diffusion.unclip import UnclipCondition
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.errors import RebusError
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.visual import Codes, ImageSampling, Progress, VisualTokens


@dataclass(frozen=True)
class SeedDetokenizerConfig:
    """Sizes and drawing defaults of the mini detokenizer."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    """The latent codec."""
    denoiser: TransformerConfig = field(default_factory=TransformerConfig)
    """The denoiser; its vector is twice the image embedding's width (embedding and noise level)."""
    draft: DraftConfig = field(default_factory=DraftConfig)
    """The decoder that predicts a coarse latent from the image embedding."""
    steps: int = 12
    """Denoising steps unless asked otherwise (the released pipeline: 20)."""
    guidance: float = 1.5
    """Guidance scale unless asked otherwise (the released pipeline: 10)."""
    noise_level: int = 0
    """Noise added to the image embedding unless asked otherwise."""
    shift: float = 1.5
    """Shift of the flow's time steps, as trained."""


def code_ids(tokens: Sequence[VisualTokens], codes: SeedTokenizer) -> Tensor:
    """ids_IN of images that are to be drawn. Raises RebusError for anything but as many codes of this tokenizer as an
    image has, each in range."""
    rows = []
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, Codes):
            raise RebusError(
                f"SEED draws from codes, but image {number} of {len(tokens)} is {type(token).__name__}. "
                "Tokenize it with this model's tokenizer."
            )
        if token.source != codes.source:
            raise RebusError(
                f"Image {number} of {len(tokens)} holds codes of {token.source!r}, but this detokenizer belongs to "
                f"{codes.source!r}. Tokenize the image again with this model."
            )
        wanted, size = codes.config.qformer.queries, codes.config.codebook_size
        low, high = (int(token.ids_N.min()), int(token.ids_N.max())) if len(token.ids_N) else (0, 0)
        if len(token.ids_N) != wanted or low < 0 or high >= size:
            raise RebusError(
                f"SEED writes an image as {wanted} codes of 0 to {size - 1}, but image {number} has "
                f"{len(token.ids_N)} from {low} to {high}. Check which tokenizer wrote them."
            )
        rows.append(token.ids_N)
    return torch.stack(rows)


class SeedDetokenizer(nn.Module):
    """Codes → images. `codes` is the tokenizer that holds the codebook and the way from codes to an image embedding;
    nothing else of it is used."""

    def __init__(self, config: SeedDetokenizerConfig, codes: SeedTokenizer) -> None:
        super().__init__()
        width = codes.config.image_width
        if config.draft.vector_width != width or config.denoiser.vector_width != 2 * width:
            raise RebusError(
                "The image decoder takes image embeddings of another width than the tokenizer gives: "
                f"draft {config.draft.vector_width}, denoiser {config.denoiser.vector_width // 2}, tokenizer {width}. "
                "Use the configs of one variant."
            )
        self.config = config
        self.codes = codes
        self.codec = LatentCodec(config.vae)
        self.denoiser = Denoiser(config.denoiser)
        self.draft = DraftDecoder(config.draft)
        self.unclip = UnclipCondition(width)

    def condition(self, embedding_ID: Tensor, level: int, noise_ID: Tensor) -> Condition:
        """What the denoiser is told of image embeddings at a noise level."""
        blank = self.denoiser.blank(len(embedding_ID), like=embedding_ID)
        return Condition(blank.tokens_ISC, self.unclip(embedding_ID, level, noise_ID), self.draft(embedding_ID))

    @torch.no_grad()
    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """`Progress` with a preview after every step, then one image for each of `tokens`. `sources` are not used:
        SEED's decoder draws from codes alone. Raises RebusError for tokens that are not codes of this tokenizer."""
        if not tokens:
            return
        device = self.draft.head.weight.device
        embedding_ID = self.embeddings(tokens, device)
        level = sampling.noise_level if sampling.noise_level is not None else self.config.noise_level
        c = self.config.denoiser
        noise_ID = noise_like(embedding_ID.shape[1:], generators, like=embedding_ID)
        noise = noise_like((c.latent_channels, c.side, c.side), generators, like=embedding_ID)
        told = self.condition(embedding_ID, level, noise_ID)
        empty = self.unconditional(negatives, level, noise_ID)
        yield from paint(
            self.denoiser,
            self.codec,
            noise,
            told,
            empty,
            steps=self.config.steps if sampling.steps is None else sampling.steps,
            guidance=self.config.guidance if sampling.guidance is None else sampling.guidance,
            shift=self.config.shift,
        )

    def embeddings(self, tokens: Sequence[VisualTokens], device: torch.device) -> Tensor:
        """The image embeddings [I, D] of codes. Raises RebusError for anything else, or codes of another tokenizer."""
        return self.codes.image_embedding(code_ids(tokens, self.codes).to(device))

    def unconditional(self, negatives: Sequence[VisualTokens | None], level: int, noise_ID: Tensor) -> Condition:
        """What guidance leads away from: the negative image where one is given, else nothing."""
        empty = self.denoiser.blank(len(noise_ID), like=noise_ID)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            tokens = [token for token in negatives if token is not None]
            negative = self.condition(self.embeddings(tokens, noise_ID.device), level, noise_ID[given])
            empty.vector_ID[given] = negative.vector_ID
            empty.extra_Iehw[given] = negative.extra_Iehw
        return empty
