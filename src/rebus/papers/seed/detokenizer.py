"""SEED's detokenizers on the mini denoiser: 32 codes become one image embedding, drawn as unCLIP does (SEED-LLaMA section
3.1), or in SEED v1 the states that a denoiser reads by attention (SEED section 3.1).

    mini     ids_N ─ codebook, decoder, head ─▶ image embedding ─ noise level, draft ─▶ condition ─ denoiser, VAE ─▶ pixels
    v1-mini  ids_N ─ codebook, decoder, Reverse Q-Former ─▶ states_ISC ─ draft ─▶ condition ─ denoiser, VAE ─▶ pixels

Dimension key: I images · N codes · S states · C their width · D width of the image embedding · c latent channels ·
h w latent sides
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import DraftConfig, DraftDecoder, GridDraft, GridDraftConfig
from rebus.diffusion.flow import noise_like
from rebus.diffusion.paint import paint
from rebus.diffusion.unclip import UnclipCondition
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.errors import RebusError
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.visual import Codes, ImageSampling, Progress, VisualTokens


@dataclass(frozen=True)
class MiniDetokenizerConfig:
    """Sizes and drawing defaults of whatever draws with the mini denoiser."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    """The latent codec."""
    denoiser: TransformerConfig = field(default_factory=TransformerConfig)
    """The denoiser."""
    steps: int = 12
    """Denoising steps unless asked otherwise (the released pipeline: 20; SEED v1 does not say)."""
    guidance: float = 1.5
    """Guidance scale unless asked otherwise (the released pipeline: 10; SEED v1 does not say)."""
    shift: float = 1.5
    """Shift of the flow's time steps, as trained."""
    written: int | None = None
    """How many of the first codes that a language model wrote are drawn from, unless asked otherwise; none: all."""


@dataclass(frozen=True)
class SeedDetokenizerConfig(MiniDetokenizerConfig):
    """The mini's: the denoiser's vector is twice the image embedding's width (embedding and noise level)."""

    draft: DraftConfig = DraftConfig(linear=True)
    """The decoder that predicts a coarse latent from the image embedding."""
    noise_level: int = 0
    """Noise added to the image embedding unless asked otherwise."""


@dataclass(frozen=True)
class StatesDetokenizerConfig(MiniDetokenizerConfig):
    """SEED v1's mini: the denoiser's tokens are the states that codes give back; no vector."""

    draft: GridDraftConfig = field(default_factory=GridDraftConfig)
    """The decoder that predicts a coarse latent from the states, which lie as patches do."""


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


class MiniDetokenizer(nn.Module, ABC):
    """Codes → images with the mini denoiser. `codes` is the tokenizer that holds the codebook and the way from codes to
    what the denoiser is told; nothing else of it is used."""

    OWN: tuple[str, ...] = ("codec", "denoiser")
    """The parts that are the detokenizer's own; the codes' way back is the tokenizer's."""
    settings = frozenset({"steps", "guidance", "codes"})
    """What it is told by `ImageSampling`."""

    def __init__(self, config: MiniDetokenizerConfig, codes: SeedTokenizer) -> None:
        super().__init__()
        self.config = config
        self.codes = codes
        self.codec = LatentCodec(config.vae)
        self.denoiser = Denoiser(config.denoiser)

    def as_written(self, sampling: ImageSampling) -> ImageSampling:
        """How an image is drawn whose codes a language model wrote."""
        return sampling if sampling.codes is not None else replace(sampling, codes=self.config.written)

    @abstractmethod
    def conditions(
        self,
        tokens: Sequence[VisualTokens],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> tuple[Condition, Condition]:
        """What the denoiser is told of the images, and what guidance leads away from."""

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
        c = self.config.denoiser
        told, empty = self.conditions(tokens, negatives, generators, sampling)
        noise = noise_like((c.latent_channels, c.side, c.side), generators, like=told.vector_ID)
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

    def embeddings(self, tokens: Sequence[VisualTokens], first: int | None = None) -> Tensor:
        """What codes, or of each image the `first` of them, give back: image embeddings [I, D] or states_ISC. Raises
        RebusError for anything else, or codes of another tokenizer."""
        ids_IN = code_ids(tokens, self.codes).to(next(self.denoiser.parameters()).device)
        return self.codes.image_embedding(ids_IN, first)


class SeedDetokenizer(MiniDetokenizer):
    """Codes → image embeddings → images."""

    OWN = (*MiniDetokenizer.OWN, "draft", "unclip")
    settings = frozenset({"steps", "guidance", "noise_level", "codes"})
    config: SeedDetokenizerConfig

    def __init__(self, config: SeedDetokenizerConfig, codes: SeedTokenizer) -> None:
        width = codes.config.image_width
        if config.draft.vector_width != width or config.denoiser.vector_width != 2 * width:
            raise RebusError(
                "The image decoder takes image embeddings of another width than the tokenizer gives: "
                f"draft {config.draft.vector_width}, denoiser {config.denoiser.vector_width // 2}, tokenizer {width}. "
                "Use the configs of one variant."
            )
        super().__init__(config, codes)
        self.draft = DraftDecoder(config.draft)
        self.unclip = UnclipCondition(width)

    def condition(self, embedding_ID: Tensor, level: int, noise_ID: Tensor) -> Condition:
        """What the denoiser is told of image embeddings at a noise level."""
        blank = self.denoiser.blank(len(embedding_ID), like=embedding_ID)
        return Condition(blank.tokens_ISC, self.unclip(embedding_ID, level, noise_ID), self.draft(embedding_ID))

    def conditions(
        self,
        tokens: Sequence[VisualTokens],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> tuple[Condition, Condition]:
        """The images' embeddings, a little noisy; away from the negative image where one is given, else from nothing."""
        embedding_ID = self.embeddings(tokens, sampling.codes)
        level = sampling.noise_level if sampling.noise_level is not None else self.config.noise_level
        noise_ID = noise_like(embedding_ID.shape[1:], generators, like=embedding_ID)
        empty = self.denoiser.blank(len(noise_ID), like=noise_ID)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            away_ID = self.embeddings([token for token in negatives if token is not None], sampling.codes)
            negative = self.condition(away_ID, level, noise_ID[given])
            empty.vector_ID[given] = negative.vector_ID
            empty.extra_Iehw[given] = negative.extra_Iehw
        return self.condition(embedding_ID, level, noise_ID), empty


class StatesDetokenizer(MiniDetokenizer):
    """Codes → states → images, as SEED v1 gives its codes to Stable Diffusion 1.4: in place of what that reads by attention.
    There these are the states of a prompt, here (our choice) the patch features that the mini denoiser was trained on."""

    OWN = (*MiniDetokenizer.OWN, "draft")
    config: StatesDetokenizerConfig

    def __init__(self, config: StatesDetokenizerConfig, codes: SeedTokenizer) -> None:
        c, width, states = codes.config, config.denoiser.token_width, config.draft.grid**2
        if c.head != "reverse" or c.reverse_queries != states or not c.image_width == width == config.draft.token_width:
            raise RebusError(
                f"The image decoder reads {states} states of width {width}, but this tokenizer's head is {c.head!r} "
                f"and gives {c.reverse_queries if c.head == 'reverse' else 1} of width {c.image_width} "
                f"(draft: {config.draft.token_width}). Use the configs of one variant."
            )
        super().__init__(config, codes)
        self.draft = GridDraft(config.draft)

    def condition(self, states_ISC: Tensor) -> Condition:
        """What the denoiser is told of states."""
        blank = self.denoiser.blank(len(states_ISC), like=states_ISC)
        return Condition(states_ISC, blank.vector_ID, self.draft(states_ISC))

    def conditions(
        self,
        tokens: Sequence[VisualTokens],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> tuple[Condition, Condition]:
        """The images' states; away from those of the negative image where one is given, else from zeros."""
        told = self.condition(self.embeddings(tokens, sampling.codes))
        empty = told.zeros()
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            away = self.condition(self.embeddings([token for token in negatives if token is not None], sampling.codes))
            empty.tokens_ISC[given] = away.tokens_ISC
            empty.extra_Iehw[given] = away.extra_Iehw
        return told, empty


def mini_detokenizer(
    config: SeedDetokenizerConfig | StatesDetokenizerConfig, codes: SeedTokenizer
) -> SeedDetokenizer | StatesDetokenizer:
    """The detokenizer of a config."""
    if isinstance(config, StatesDetokenizerConfig):
        return StatesDetokenizer(config, codes)
    return SeedDetokenizer(config, codes)
