"""SEED-X's detokenizer on the mini denoiser: the features of an image become what the denoiser is told, and the latent of
a source image may stand beside the noisy one (section 3.1, appendix B).

    x_1SC ─ adapter ─▶ tokens, vector ─┐
          └ draft ───▶ channels ───────┼─ denoiser, VAE ─▶ pixels
    source ─ VAE ────▶ channels ───────┘

The draft, a coarse latent predicted from the features, is ours, as everywhere in the mini family; SDXL's decoders are in
`published_decoder.py`.

Dimension key: I images · S features, or latents of the adapter · C width · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import PIL.Image
import torch
from einops import rearrange
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import GridDraft, GridDraftConfig
from rebus.diffusion.editing import EditGuidance, Kept, sample_edit_flow
from rebus.diffusion.flow import noise_like
from rebus.diffusion.paint import show
from rebus.diffusion.unclip import UnclipCondition
from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.errors import RebusError
from rebus.images import prepare
from rebus.papers.seed_x.adapter import Adapter, AdapterConfig
from rebus.papers.seed_x.keeping import KeepMask
from rebus.papers.seed_x.published_decoder import HALF, read_features
from rebus.visual import ImageSampling, Progress, VisualTokens

MINI_ADAPTER = AdapterConfig(
    in_width=192, latents=16, width=192, depth=3, heads=4, head_width=48, widths=(96, 96), pooled=512
)
"""For features of the mini vision encoder, and the mini denoiser's tokens and vector."""


@dataclass(frozen=True)
class SeedXDetokenizerConfig:
    """Sizes and drawing defaults of the mini detokenizer."""

    adapter: AdapterConfig = MINI_ADAPTER
    """Features → what the denoiser is told."""
    vae: VaeConfig = field(default_factory=VaeConfig)
    """The latent codec."""
    denoiser: TransformerConfig = field(default_factory=TransformerConfig)
    """The denoiser. Its extra channels hold the draft, and in the second stage the latent of a source image too."""
    draft: GridDraftConfig = field(default_factory=GridDraftConfig)
    """The decoder that predicts a coarse latent from the features, spread over the patches that they stand for."""
    strip: int = 4
    """Neighbouring patches of a row that a feature stands for (`pooled` of the tokenizer)."""
    steps: int = 12
    """Denoising steps unless asked otherwise (the published code: 50)."""
    guidance: float = 1.5
    """Guidance towards what is told, unless asked otherwise (the published code: 7.5)."""
    image_guidance: float = 1.0
    """Guidance towards the source image, unless asked otherwise (the published code: 1.5)."""
    keep_width: int = 0
    """Channels of the network that says where an edit keeps its source; 0: none."""
    shift: float = 1.5
    """Shift of the flow's time steps, as trained."""

    @property
    def source_channels(self) -> int:
        """Input channels for the latent of a source image; 0: the decoder does not edit."""
        return self.denoiser.extra_channels - self.denoiser.latent_channels

    @property
    def slots(self) -> int:
        """Features that an image is drawn from."""
        return self.draft.grid**2 // self.strip


FIRST_STAGE = SeedXDetokenizerConfig()
"""What the mini's first stage trains: it draws from features alone."""
SECOND_STAGE = SeedXDetokenizerConfig(denoiser=TransformerConfig(extra_channels=8))
"""What the mini's second stage trains: it may keep what a source image shows."""
EDITOR = replace(SECOND_STAGE, keep_width=48)
"""The same with a network that says where it keeps it."""


class StripDraft(nn.Module):
    """Features that each stand for a strip of patches → coarse standardised latent [I, c, h, w]."""

    def __init__(self, width: int, strip: int, config: GridDraftConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.spread = nn.Linear(width, strip * config.token_width)
        self.grid = GridDraft(config)

    def forward(self, x_ISC: Tensor) -> Tensor:
        """The coarse latent of each image's features."""
        return self.grid(
            rearrange(self.spread(self.norm(x_ISC)), "i s (n c) -> i (s n) c", c=self.grid.config.token_width)
        )


class SeedXDetokenizer(nn.Module):
    """Features → images. `source` names the tokenizer whose features they are."""

    def __init__(
        self, config: SeedXDetokenizerConfig, *, source: str = "seed_x", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.source = source
        check_sizes(config)
        self.codec = LatentCodec(config.vae)
        self.adapter = Adapter(config.adapter, generator)
        self.denoiser = Denoiser(config.denoiser)
        self.draft = StripDraft(config.adapter.in_width, config.strip, config.draft)
        self.unclip = UnclipCondition(config.adapter.pooled)
        self.keep = KeepMask(config.denoiser.latent_channels, config.keep_width) if config.keep_width else None

    @property
    def edits(self) -> bool:
        """Whether it keeps what a source image shows (second stage)."""
        return self.config.source_channels > 0

    @property
    def settings(self) -> frozenset[str]:
        """What it is told by `ImageSampling`; how a source is kept only where it sees one."""
        return frozenset({"steps", "guidance", *(("image_guidance",) if self.edits else ())})

    def condition(self, x_ISC: Tensor, source_Ichw: Tensor | None = None) -> Condition:
        """What the denoiser is told of features, and of the standardised latents of sources (zeros: none)."""
        tokens_ISC, vector_ID = self.adapter(x_ISC)
        draft = self.draft(x_ISC)
        extra = [draft]
        if self.edits:
            extra.append(torch.zeros_like(draft) if source_Ichw is None else source_Ichw.to(draft.dtype))
        # the base denoiser was trained on image embeddings at a noise level; the lowest, without noise
        label_ID = self.unclip(vector_ID, 0, torch.zeros_like(vector_ID))
        return Condition(tokens_ISC, label_ID, torch.cat(extra, dim=1))

    def untold(self, told: Condition) -> Condition:
        """Nothing told, but for the sources."""
        extra = told.extra_Iehw.clone()
        extra[:, : self.config.denoiser.latent_channels] = 0
        return Condition(torch.zeros_like(told.tokens_ISC), torch.zeros_like(told.vector_ID), extra)

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
        """`Progress` with a preview after every step, then one image for each of `tokens`. The second stage keeps what a
        source shows, where one is given; the first does not look at them. Raises RebusError for tokens that are not
        features of this model's tokenizer, as many as it was made for, and for less than one step."""
        if not tokens:
            return
        c = self.config
        steps = c.steps if sampling.steps is None else sampling.steps
        latents_Ichw = self.source_latents(sources) if self.edits else None
        told = self.condition(self.features(tokens), latents_Ichw)
        away = self.away(told, negatives, latents_Ichw)
        d = c.denoiser
        noise = noise_like((d.latent_channels, d.side, d.side), generators, like=self.like)
        drawing = sample_edit_flow(
            self.denoiser,
            noise,
            told,
            away,
            guidance=self.guidance(sampling),
            kept=self.kept(told, latents_Ichw, sources),
            steps=steps,
            shift=c.shift,
        )
        yield from show(self.codec, drawing, steps=steps)

    def kept(
        self, told: Condition, latents_Ichw: Tensor | None, sources: Sequence[PIL.Image.Image | None]
    ) -> Kept | None:
        """Where sources are kept, by what is told; nowhere of an image that has none."""
        if self.keep is None or latents_Ichw is None:
            return None
        draft_Ichw = told.extra_Iehw[:, : self.config.denoiser.latent_channels]
        there_I = torch.tensor([source is not None for source in sources], device=draft_Ichw.device)
        return Kept(latents_Ichw, self.keep(draft_Ichw, latents_Ichw).sigmoid() * there_I[:, None, None, None])

    @property
    def like(self) -> Tensor:
        """A tensor of the device and dtype of what is computed."""
        return self.draft.spread.weight

    def guidance(self, sampling: ImageSampling) -> EditGuidance:
        """What is asked for, else the config's. Without sources there is nothing to be led to but what is told."""
        c = self.config
        text = c.guidance if sampling.guidance is None else sampling.guidance
        image = c.image_guidance if sampling.image_guidance is None else sampling.image_guidance
        return EditGuidance(text, image if self.edits else 1.0)

    def features(self, tokens: Sequence[VisualTokens]) -> Tensor:
        """x_ISC of images to be drawn. Raises RebusError as `decode` does."""
        rows = read_features(tokens, self.source, self.config.adapter.in_width)
        wanted = self.config.slots
        for number, x_1SC in enumerate(rows, 1):
            if x_1SC.shape[1] != wanted:
                raise RebusError(
                    f"This detokenizer draws an image from {wanted} features, but image {number} of {len(rows)} has "
                    f"{x_1SC.shape[1]}. Tokenize it for generation, not for understanding."
                )
        return torch.cat(rows).to(self.like)

    def away(self, told: Condition, negatives: Sequence[VisualTokens | None], latents_Ichw: Tensor | None) -> Condition:
        """What guidance leads away from, beside the sources: the negative image where one is given, else nothing."""
        away = self.untold(told)
        given = [number for number, token in enumerate(negatives) if token is not None]
        if given:
            x_ISC = self.features([token for token in negatives if token is not None])
            own = self.condition(x_ISC, None if latents_Ichw is None else latents_Ichw[given])
            for name in ("tokens_ISC", "vector_ID", "extra_Iehw"):
                getattr(away, name)[given] = getattr(own, name)
        return away

    def source_latents(self, sources: Sequence[PIL.Image.Image | None]) -> Tensor:
        """Standardised latents of sources, stretched to the size that is drawn; zeros where there is none."""
        c = self.config.denoiser
        latents = self.like.new_zeros(len(sources), c.latent_channels, c.side, c.side)
        given = [number for number, picture in enumerate(sources) if picture is not None]
        if given:
            pictures = [picture for picture in sources if picture is not None]
            pixels = prepare(pictures, pixel_side(self.config), resize="bicubic", mean=HALF, std=HALF)
            latents[given] = self.codec.encode(pixels.to(self.like))
        return latents


def pixel_side(config: SeedXDetokenizerConfig) -> int:
    """Pixels of one side of what is drawn."""
    return config.denoiser.side * config.vae.unshuffle * 2 ** (len(config.vae.channels) - 1)


def check_sizes(config: SeedXDetokenizerConfig) -> None:
    """Raises RebusError when the parts' sizes do not belong together."""
    adapter, denoiser, draft = config.adapter, config.denoiser, config.draft
    latent = denoiser.latent_channels
    source = config.source_channels
    pairs = {
        "the denoiser's vector and twice the adapter's": (denoiser.vector_width, 2 * adapter.pooled),
        "the denoiser's tokens and the adapter's": (denoiser.token_width, sum(adapter.widths)),
        "the draft's channels and the latent's": (draft.latent_channels, latent),
        "the codec's channels and the latent's": (config.vae.latent_channels, latent),
        "the draft's side and the denoiser's": (draft.grid * 2 ** (len(draft.widths) - 1), denoiser.side),
        "the draft's patches in a row and whole strips": (draft.grid, draft.grid // config.strip * config.strip),
        "a network that says what is kept, and a source": (bool(config.keep_width and not source), False),
        "the source's channels and the latent's, or none": (source, latent if source else 0),
    }
    wrong = [f"{what} ({one} and {two})" for what, (one, two) in pairs.items() if one != two]
    if wrong:
        raise RebusError(
            f"The parts of the image decoder do not belong together: {'; '.join(wrong)} should be the same. "
            "Use the configs of one variant."
        )
