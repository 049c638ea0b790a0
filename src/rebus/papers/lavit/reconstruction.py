"""How LaVIT's tokenizer learns: patch features through selector, merger, codes and decoder, and back (section 3.1).

    x_INC ─ selector ─▶ keep_IN (0 or 1, with a gradient)
    x_INC, keep_IN ─ merger ─▶ ─ to_code ─▶ z of length 1 ─ look-up, where there is one ─▶ ─ decoder ─▶ x_INC again

Loss: 1 − cosine of each patch and what it became, and a penalty on keeping another share of patches than asked
(equation 4).

Dimension key: I images · N patches · T kept patches of all images · E code width · C width · c latent channels · h w sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.diffusion.draft import GridDraft, GridDraftConfig
from rebus.errors import RebusError
from rebus.nn.quantize import UnitQuantizer, usage
from rebus.nn.vit import ViT
from rebus.papers.lavit.decoder import Decoder, DecoderConfig
from rebus.papers.lavit.selector import KEEP, gumbel_noise, keep_straight_through, straight_through
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig
from rebus.train import Losses

COUNTS = (0.1, 0.7)
"""Fewest and most patches of an image whose number is chosen by dice, as shares of all."""
RUNNING_MEANS = ("quantizer.hits_K", "quantizer.sum_KC")
"""What only the training of a codebook needs."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """What is rebuilt and what it costs; the defaults are the paper's."""

    tokenizer: LavitTokenizerConfig = field(default_factory=LavitTokenizerConfig)
    """The tokenizer."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Codes → features."""
    share: float = 1 / 3
    """Share of the patches that is to be kept."""
    share_weight: float = 2.0
    """Weight of the squared distance from it."""
    share_of: Literal["per_image", "batch"] = "per_image"
    """Whose share is meant. The paper's formula is over the patches of one image, which punishes every image that needs
    another number of tokens than the mean; its text speaks of the mean, which `batch` is over all images of a step."""
    gradient: Literal["merger", "decoder"] = "merger"
    """What the selector learns from. The merger's attention alone (the released inference code knows no other way), or also
    the decoder's, whose attention to codes is then weighed by the mask. The paper does not say; the second is far more
    direct, and needs the merger and decoder computed for all patches."""
    temperature: float = 1.0
    """Temperature of the Gumbel softmax. The paper names none; its code draws at 1."""
    other_counts: float = 0.0
    """Where patches are chosen without dice and the selector does not learn: share of the images of which another number than their own is kept, so that
    what is rebuilt can be rebuilt from few tokens and from many (a token budget, a drawing that ends early). 0 in
    the paper."""
    draft: GridDraftConfig | None = None
    """A small convolution that draws the picture's latent from the rebuilt features; none in the paper."""
    draft_weight: float = 0.0
    """Weight of its squared error, so that features are rebuilt which can be drawn from; 0 in the paper."""


class Reconstruction(nn.Module):
    """The tokenizer and what is trained with it. With a `quantizer`, codes are looked up and its rows follow them; else
    the vectors before look-up go through."""

    def __init__(
        self,
        config: ReconstructionConfig,
        *,
        quantizer: UnitQuantizer | None = None,
        selector_learns: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if config.decoder.patches != config.tokenizer.vision.grid**2 or (config.draft_weight > 0) != bool(config.draft):
            raise RebusError(
                "The decoder rebuilds every patch, and a draft has a weight, but there are "
                f"{config.tokenizer.vision.grid**2} patches, the decoder has {config.decoder.patches}, and the draft "
                f"{'is there' if config.draft else 'is none'} with weight {config.draft_weight}. Use one variant's configs."
            )
        self.config = config
        self.selector_learns = selector_learns
        self.tokenizer = LavitTokenizer(config.tokenizer, generator=generator)
        if quantizer is not None:
            self.tokenizer.quantizer = quantizer
        self.detokenizer = nn.ModuleDict({"decoder": Decoder(config.decoder, generator)})
        if config.draft is not None:
            with torch.random.fork_rng(devices=[]):  # its layers know the global generator only
                torch.manual_seed(0)
                self.detokenizer["draft"] = GridDraft(config.draft)
        self.norm = nn.LayerNorm(config.tokenizer.vision.width)

    def start_from(self, weights: dict[str, Tensor], vision: ViT, norm: nn.LayerNorm | None = None) -> None:
        """Takes the trained vision encoder, the norm behind it that the draft was trained on, and what of `weights` (from
        `stage_weights`) has a place here."""
        ours = self.state_dict()
        self.load_state_dict({**ours, **{name: x for name, x in weights.items() if name in ours}})
        self.tokenizer.visual_encoder.load_state_dict(vision.state_dict())
        if norm is not None:
            self.norm.load_state_dict(norm.state_dict())

    @torch.no_grad()
    def start_draft(self, tokens_INC: Tensor, latents_Ichw: Tensor) -> None:
        """Sets what of the draft is linear by least squares, from tokens of the vision encoder, a class token first."""
        draft = self.detokenizer["draft"] if "draft" in self.detokenizer else None
        if isinstance(draft, GridDraft) and draft.linear is not None:
            draft.fit_linear(self.norm(tokens_INC[:, 1:]), latents_Ichw)

    def losses(
        self,
        x_INC: Tensor,
        generator: torch.Generator,
        *,
        noise: float = 1.0,
        latents_Ichw: Tensor | None = None,
    ) -> Losses:
        """The loss of features of the frozen vision encoder. `noise` scales the Gumbel noise of the choice; the draft is
        compared with `latents_Ichw`."""
        config = self.config
        keep_IN = self.choice(x_INC, generator, noise)
        rebuilt_INC, parts = self.rebuild(x_INC, keep_IN)
        cosine = (1 - F.cosine_similarity(x_INC.float(), rebuilt_INC.float(), dim=-1)).mean()
        shares_I = keep_IN.mean(1)
        off = (config.share - shares_I).square().mean()
        if config.share_of == "batch":
            off = (config.share - shares_I.mean()).square()
        total = cosine + config.share_weight * off + parts.get("commitment", 0.0)
        parts |= {"cosine": cosine, "share": off, "kept": keep_IN.detach().sum(1).mean()}
        parts["kept_deviation"] = keep_IN.detach().sum(1).std(correction=0)
        if latents_Ichw is not None and "draft" in self.detokenizer:
            parts["draft"] = F.mse_loss(self.detokenizer["draft"](self.norm(rebuilt_INC)).float(), latents_Ichw)
            total = total + config.draft_weight * parts["draft"]
        return Losses(total, parts)

    def choice(self, x_INC: Tensor, generator: torch.Generator, noise: float) -> Tensor:
        """keep_IN as numbers, drawn with Gumbel noise of scale `noise`; without noise the choice that the tokenizer makes
        when it does not draw."""
        logp_IN2 = self.tokenizer.selector(x_INC)
        if noise == 0 and self.training and not self.selector_learns and self.config.other_counts > 0:
            return self.recounted(logp_IN2, generator)
        if noise == 0:
            return straight_through(self.tokenizer.undiced(logp_IN2), logp_IN2, self.config.temperature)
        noise_IN2 = noise * gumbel_noise(x_INC.shape[1], [generator] * len(x_INC)).to(logp_IN2)
        return keep_straight_through(logp_IN2, noise_IN2, self.config.temperature)

    def recounted(self, logp_IN2: Tensor, generator: torch.Generator) -> Tensor:
        """The tokenizer's own choice as numbers, but for a share of the images as many of the likeliest patches as dice say."""
        images, patches = logp_IN2.shape[:2]
        own_IN = self.tokenizer.undiced(logp_IN2)
        low, high = (max(1, round(x * patches)) for x in COUNTS)
        counts_I1 = torch.randint(low, high + 1, (images, 1), generator=generator).to(own_IN.device)
        rank_IN = logp_IN2[..., KEEP].argsort(1, descending=True).argsort(1)
        other_I1 = (torch.rand(images, 1, generator=generator) < self.config.other_counts).to(own_IN.device)
        return torch.where(other_I1, rank_IN < counts_I1, own_IN).to(logp_IN2.dtype)

    def rebuild(self, x_INC: Tensor, keep_IN: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Features and what is kept (0 or 1) → features again; with a codebook, also its loss and figures. While training
        the codebook moves."""
        kept_IN, tokenizer, decoder = keep_IN > 0, self.tokenizer, self.decoder
        if not self.selector_learns:  # nothing is learned from rows that are not kept: they need not be computed
            z_TE, parts = self.coded(tokenizer.codes_before(tokenizer.merger.kept(x_INC, kept_IN)))
            return decoder(z_TE, kept_IN.sum(1)), parts
        z_INE = tokenizer.codes_before(tokenizer.merger(x_INC, keep_IN))
        z_TE, parts = self.coded(z_INE[kept_IN])
        if self.config.gradient == "merger":
            return decoder(z_TE, kept_IN.sum(1)), parts
        return decoder.weighed(z_INE.index_put((kept_IN,), z_TE.to(z_INE.dtype)), keep_IN), parts

    @property
    def decoder(self) -> Decoder:
        """Codes → features."""
        decoder = self.detokenizer["decoder"]
        assert isinstance(decoder, Decoder)
        return decoder

    def coded(self, z_TE: Tensor) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Vectors of length 1 → the codebook's rows, with the vectors' gradient; without a codebook as they are."""
        quantizer = self.tokenizer.quantizer
        if not isinstance(quantizer, UnitQuantizer):
            return z_TE, {}
        quantized = quantizer(z_TE)
        if self.training:
            quantizer.update(z_TE.detach(), quantized.ids)
        used, perplexity = usage(quantized.ids, len(quantizer.codebook_KC))
        return quantized.x, {"commitment": quantized.loss, "codes_used": float(used), "perplexity": perplexity}

    @torch.no_grad()
    def measure(self, batches: Sequence[Tensor]) -> Iterator[tuple[str, float]]:
        """Figures of features x_INC in several batches, with the tokenizer's own way of choosing: the cosine of what is
        rebuilt, how many patches are kept, how decided the selector is (bits: 0 decided, 1 a coin), the codes in use."""
        cosines, counts, bits, ids = [], [], [], []
        for x_INC in batches:
            keep_IN = self.tokenizer.keep(x_INC)
            rebuilt_INC, _ = self.rebuild(x_INC, keep_IN.to(x_INC))
            cosines.append(F.cosine_similarity(x_INC, rebuilt_INC, dim=-1).mean(1))
            counts.append(keep_IN.sum(1).float())
            logp_IN2 = self.tokenizer.selector(x_INC)
            bits.append(-(logp_IN2.exp() * logp_IN2).sum(-1).mean(1) / torch.log(torch.tensor(2.0)))
            if isinstance(self.tokenizer.quantizer, UnitQuantizer):
                ids.append(self.tokenizer.ids(x_INC, keep_IN))
        yield "val/cosine", torch.cat(cosines).mean().item()
        count_I = torch.cat(counts)
        yield "val/kept", count_I.mean().item()
        yield "val/kept_deviation", count_I.std(correction=0).item()
        for percent in (5, 95):
            yield f"val/kept_{percent}_percentile", count_I.quantile(percent / 100).item()
        yield "val/undecided_bits", torch.cat(bits).mean().item()
        if ids:
            used, perplexity = usage(torch.cat(ids), len(self.tokenizer.quantizer.codebook_KC))
            yield "val/codes_used", float(used)
            yield "val/perplexity", perplexity


def stage_weights(*files: Path) -> dict[str, Tensor]:
    """The weights that stages left, the later laid over the earlier, float32, without what only training needs. Raises
    RebusError for a file that is not there."""
    weights: dict[str, Tensor] = {}
    for file in files:
        if not file.exists():
            raise RebusError(f"There is no {file}, from which this goes on. Train {file.parent.name} first.")
        weights |= {name: x.float() for name, x in load_file(file).items() if not name.endswith(RUNNING_MEANS)}
    return weights


def load_tokenizer(config: LavitTokenizerConfig, vision: ViT, *files: Path, source: str = "lavit") -> LavitTokenizer:
    """The tokenizer that stages 1a and 1b left, with its vision encoder. Raises RebusError when something is missing."""
    found = stage_weights(*files)
    own = {name.removeprefix("tokenizer."): x for name, x in found.items() if name.startswith("tokenizer.")}
    tokenizer = LavitTokenizer(config, source=source)
    wanted = {name for name in tokenizer.state_dict() if not name.startswith("visual_encoder.")}
    if wanted != set(own):
        left = sorted(wanted.symmetric_difference(own))
        raise RebusError(
            f"The weights of stage 1 are of another tokenizer: {len(left)} tensors are missing or left over "
            f"({', '.join(left[:3])}). Use the config that they were trained with."
        )
    tokenizer.load_state_dict({**own, **{f"visual_encoder.{k}": x for k, x in vision.state_dict().items()}})
    return tokenizer.eval()
