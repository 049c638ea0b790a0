"""How SEED-X's image decoder learns on the mini denoiser, in both stages (appendix B).

    features ─ adapter, draft ─▶ condition ┐
    source's latent, or zeros ─────────────┼─ denoiser ─▶ velocity, compared with noise − latent
    latent, made noisy ────────────────────┘

Dimension key: I images · S features · C width · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser
from rebus.diffusion.editing import widened
from rebus.errors import RebusError
from rebus.mini.denoiser import load_denoiser
from rebus.mini.looks import LooksConfig, Shown, drawing_losses, load_looks
from rebus.papers.seed_x.detokenizer import SeedXDetokenizer, SeedXDetokenizerConfig
from rebus.papers.seed_x.edit_bank import Seen
from rebus.train import Losses
from rebus.visual import Features, ImageSampling

FIRST = "seed_x.detokenizer1"
SECOND = "seed_x.detokenizer2"
KEEPING = "seed_x.keeping"
KEYS_AND_VALUES = ("to_k", "to_v", "add_k_proj", "add_v_proj")
"""What of a denoiser's attention the first stage trains: all of its keys and values, of the image's own tokens too."""


BLUR_NOISE = 0.3
"""Deviation of the noise of features that are blurred entirely, as a share of theirs."""


class DecoderTraining(nn.Module):
    """The image decoder, told features and where there is one a source."""

    mean_SC: Tensor
    std_SC: Tensor

    def __init__(
        self,
        detokenizer: SeedXDetokenizer,
        *,
        untold: float,
        unseen: float = 0.0,
        blurred: float = 0.0,
        vector_weight: float = 0.0,
        examples_ISC: Tensor | None = None,
        looks: LooksConfig | None = None,
    ) -> None:
        super().__init__()
        self.detokenizer = detokenizer
        self.weigh_looks = looks or LooksConfig()
        self.looks = load_looks(self.weigh_looks)
        self.vector_weight = vector_weight
        self.untold, self.unseen, self.blurred = untold, unseen, blurred
        examples_ISC = torch.zeros(1, 1, 1) if examples_ISC is None else examples_ISC
        self.register_buffer("mean_SC", examples_ISC.mean(0), persistent=False)
        self.register_buffer("std_SC", examples_ISC.std(0, correction=0), persistent=False)

    def blur(self, x_ISC: Tensor) -> Tensor:
        """Features of which a share of the images is drawn towards the mean of all, and made noisy: what a language model
        regresses is a mean of what may be meant, and a decoder that has seen true features alone would believe all of it."""
        count = len(x_ISC)
        if not self.blurred:
            return x_ISC
        keep_I11 = torch.rand(count, 1, 1, device=x_ISC.device)
        keep_I11 = torch.where(torch.rand_like(keep_I11) < self.blurred, keep_I11, torch.ones_like(keep_I11))
        noise_ISC = BLUR_NOISE * (1 - keep_I11) * self.std_SC * torch.randn_like(x_ISC)
        return self.mean_SC + keep_I11 * (x_ISC - self.mean_SC) + noise_ISC

    def losses(
        self,
        latents_Ichw: Tensor,
        x_ISC: Tensor,
        source_Ichw: Tensor | None = None,
        embedding_ID: Tensor | None = None,
        pixels_I3hw: Tensor | None = None,
    ) -> Losses:
        """Velocity error, the draft's error, and where image embeddings are given how far the adapter's vector is from them; where it counts
        what pictures look like, `pixels_I3hw` are theirs.
        Some images are told nothing, some do not see their source, each by chance, so that guidance has something to lead
        away from; some features are blurred."""
        model = self.detokenizer
        x_ISC = self.blur(x_ISC)
        channels = latents_Ichw.shape[1]
        if source_Ichw is not None:
            source_Ichw = source_Ichw * kept(latents_Ichw, self.unseen)
        condition = model.condition(x_ISC, source_Ichw)
        drafted = F.mse_loss(condition.extra_Iehw[:, :channels].float(), latents_Ichw)
        extra = condition.extra_Iehw.detach().clone()  # the draft learns from its own error alone
        told = kept(latents_Ichw, self.untold)
        extra[:, :channels] *= told
        tokens, vector = condition.tokens_ISC * told[:, :, 0], condition.vector_ID * told[:, :, 0, 0]
        drawn, parts = drawing_losses(
            model.denoiser,
            model.codec,
            None if pixels_I3hw is None else self.looks,
            self.weigh_looks,
            Shown(latents_Ichw, latents_Ichw if pixels_I3hw is None else pixels_I3hw, told[:, 0, 0, 0] > 0),
            Condition(tokens, vector, extra),
            shift=model.config.shift,
        )
        total, parts = drawn + drafted, {**parts, "draft": drafted}
        if embedding_ID is not None and self.vector_weight:
            parts["vector"] = F.mse_loss(model.adapter(x_ISC)[1].float(), embedding_ID)
            total = total + self.vector_weight * parts["vector"]
        return Losses(total, parts)


def kept(like: Tensor, dropped: float) -> Tensor:
    """1 or 0 for each image [I, 1, 1, 1]: 0 for the share `dropped` of them."""
    return (torch.rand(len(like), 1, 1, 1, device=like.device) >= dropped).to(like.dtype)


def first_decoder(config: SeedXDetokenizerConfig, data: Seen) -> SeedXDetokenizer:
    """A fresh adapter and draft on the base denoiser. Raises RebusError for a config that edits."""
    model = SeedXDetokenizer(config)
    if model.edits:
        raise RebusError(
            f"The first stage draws from features alone, but its denoiser has {config.source_channels} channels for a "
            "source image. Train that with seed_x.detokenizer2."
        )
    base, _ = load_denoiser(data.data.work / "mini.denoiser" / "weights.safetensors")
    if base.config != config.denoiser:
        raise RebusError(
            f"The base denoiser is {base.config}, but the first stage's is {config.denoiser}. Use one shape for both."
        )
    model.denoiser.load_state_dict(base.state_dict())
    model.codec.load_state_dict(data.data.codec.state_dict())
    return model


def second_decoder(first: SeedXDetokenizerConfig, config: SeedXDetokenizerConfig, data: Seen) -> SeedXDetokenizer:
    """What the first stage left under `work`, its denoiser widened by the channels of a source."""
    model = SeedXDetokenizer(config)
    if not model.edits:
        raise RebusError(
            "The second stage sees a source image, but its denoiser has no channels for one. Give it twice as many "
            f"extra channels as the first stage's {first.denoiser.extra_channels}."
        )
    # a stage's weights hold what learned, and the first stage trains but a part of the denoiser
    before = first_decoder(first, data)
    held = load_file(data.data.work / FIRST / "weights.safetensors")
    stored = {name.removeprefix("detokenizer."): x.float() for name, x in held.items()}
    before.load_state_dict({**before.state_dict(), **stored})
    widen(before.denoiser, config.source_channels)
    model.load_state_dict(before.state_dict())
    return model


def widen(denoiser: Denoiser, channels: int) -> None:
    """Gives the denoiser `channels` more input channels, to which it is blind at first."""
    embed = denoiser.net.pos_embed
    embed.proj = widened(embed.proj, channels)


def drawn(model: SeedXDetokenizer, x_ISC: Tensor, sources: Sequence[PIL.Image.Image | None] | None = None) -> Tensor:
    """Pictures drawn from features, pixels [I, 3, h, w] in −1..1; each from a seed of its own."""
    count = len(x_ISC)
    drawing = model.decode(
        [Features(x_SC[None], model.source) for x_SC in x_ISC],
        sources=sources or [None] * count,
        negatives=[None] * count,
        generators=[torch.Generator().manual_seed(k) for k in range(count)],
        sampling=ImageSampling(),
    )
    images = [np.asarray(image) for image in drawing if isinstance(image, PIL.Image.Image)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def masked_psnr(one_I3hw: Tensor, two_I3hw: Tensor, mask_Ihw: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB over the pixels of a mask, of images in which it has any."""
    share_I = mask_Ihw.float().sum((1, 2))
    error_Ihw = (one_I3hw - two_I3hw).square().mean(1) / 4
    has = share_I > 0
    error_I = (error_Ihw * mask_Ihw).sum((1, 2))[has] / share_I[has]
    return (-10 * error_I.clamp_min(1e-8).log10()).mean().item()


def edit_figures(model: SeedXDetokenizer, seen: Seen, most: int = 64) -> Iterator[tuple[str, float]]:
    """Of the first edits of `val`, drawn from the true features of their targets: PSNR outside their masks with the source in view and
    without, and within."""
    bank = seen.banks["val"]
    some = np.arange(min(most, len(bank)))
    _, x_ISC, _ = seen.edited("val", some)
    target, mask_Ihw = bank.pixels(some, 1), torch.from_numpy(np.array(bank.masks_Ihw[some]))
    sources = [PIL.Image.fromarray(pair[0]) for pair in np.asarray(bank.images_I2hw3[some])]
    with_source, without = drawn(model, x_ISC, sources), drawn(model, x_ISC)
    yield "val/kept_psnr", masked_psnr(with_source, target, ~mask_Ihw)
    yield "val/kept_psnr_without_source", masked_psnr(without, target, ~mask_Ihw)
    yield "val/changed_psnr", masked_psnr(with_source, target, mask_Ihw)
