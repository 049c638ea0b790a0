"""The mini's detokenizer: codes become patch features, which the mini denoiser draws (section 3.1, on the shared parts).

    ids_N ─ codebook, decoder ─▶ x_INC ─ norm ─▶ condition tokens, and a draft that the denoiser refines

The features lie where the picture's latent lies, so the draft is a small convolution and not a way from a vector to
places.

Dimension key: I images · N patches · C width · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import PIL.Image
import torch
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import GridDraft, GridDraftConfig
from rebus.diffusion.flow import noise_like
from rebus.diffusion.paint import paint
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.errors import RebusError
from rebus.papers.lavit.decoder import Decoder, DecoderConfig, decode_codes
from rebus.visual import ImageSampling, Progress, VisualTokens


@dataclass(frozen=True)
class MiniDetokenizerConfig:
    """Sizes and drawing defaults of the mini's image decoder."""

    decoder: DecoderConfig = field(
        default_factory=lambda: DecoderConfig(patches=64, code_width=16, width=192, depth=3, heads=4, mlp_hidden=768)
    )
    """Codes → features."""
    codes: int = 2048
    """Entries of the codebook."""
    vae: VaeConfig = field(default_factory=VaeConfig)
    """The latent codec."""
    denoiser: TransformerConfig = field(default_factory=TransformerConfig)
    """The denoiser, whose condition tokens are the features."""
    draft: GridDraftConfig = field(default_factory=lambda: GridDraftConfig(linear=True))
    """The decoder that predicts a coarse latent from the features."""
    steps: int = 12
    """Denoising steps unless asked otherwise."""
    guidance: float = 1.5
    """Guidance scale unless asked otherwise."""
    shift: float = 1.5
    """Shift of the flow's time steps, as trained."""


class MiniDetokenizer(nn.Module):
    """Codes → images. `norm` is the mini vision encoder's, behind which features mean something to the denoiser;
    `source` names the tokenizer whose codebook it holds."""

    settings = frozenset({"steps", "guidance", "size"})
    """What it is told by `ImageSampling`."""

    codebook_KE: Tensor

    def __init__(
        self, config: MiniDetokenizerConfig, *, source: str = "lavit", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        width = config.decoder.width
        if not width == config.denoiser.token_width == config.draft.token_width:
            raise RebusError(
                "Decoder, denoiser and draft speak of features of one width, but these are "
                f"{width}, {config.denoiser.token_width} and {config.draft.token_width}. Use the configs of one variant."
            )
        self.config = config
        self.source = source
        self.decoder = Decoder(config.decoder, generator)
        self.norm = nn.LayerNorm(width)
        self.codec = LatentCodec(config.vae)
        self.denoiser = Denoiser(config.denoiser)
        self.draft = GridDraft(config.draft)
        self.register_buffer("codebook_KE", torch.zeros(config.codes, config.decoder.code_width))

    def features(self, tokens: Sequence[VisualTokens]) -> Tensor:
        """Codes → features x_INC. Raises RebusError as `decode` does."""
        return decode_codes(self.decoder, self.codebook_KE, tokens, self.source)

    def condition(self, x_INC: Tensor) -> Condition:
        """What the denoiser is told of features."""
        x_INC = self.norm(x_INC)
        blank = self.denoiser.blank(len(x_INC), like=x_INC)
        return Condition(x_INC, blank.vector_ID, self.draft(x_INC))

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
        """`Progress` with a preview after every step, then one image for each of `tokens`. `sources` are not used. A
        negative image is what guidance leads away from; without one, nothing told. Raises RebusError for tokens that are
        not codes of this model's tokenizer, and for another size than the mini's."""
        if not tokens:
            return
        c = self.config.denoiser
        side = self.config.vae.unshuffle * 2 ** (len(self.config.vae.channels) - 1) * c.side
        if sampling.size not in (None, (side, side)):
            raise RebusError(f"The mini draws pictures of {side} x {side} pixels, but {sampling.size} was asked for.")
        told = self.condition(self.features(tokens))
        noise = noise_like((c.latent_channels, c.side, c.side), generators, like=told.tokens_ISC)
        yield from paint(
            self.denoiser,
            self.codec,
            noise,
            told,
            self.untold(told, negatives),
            steps=self.config.steps if sampling.steps is None else sampling.steps,
            guidance=self.config.guidance if sampling.guidance is None else sampling.guidance,
            shift=self.config.shift,
        )

    def untold(self, told: Condition, negatives: Sequence[VisualTokens | None]) -> Condition:
        """What guidance leads away from."""
        empty = told.zeros()
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            away = self.condition(self.features([token for token in negatives if token is not None]))
            empty.tokens_ISC[given] = away.tokens_ISC
            empty.extra_Iehw[given] = away.extra_Iehw
        return empty
