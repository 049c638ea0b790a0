"""mini-sd: the base denoiser of the mini family, the stand-in for Stable Diffusion, with the draft that goes with it.

Trained once on a mix of conditions, so that every paper's detokenizer can be fine-tuned from it: the image embedding as
a vector (mostly with the draft predicted from it), all patch features as tokens, a caption as one token, or nothing.

    rebus train mini.denoiser --config mini --work state

Dimension key: I images · S condition tokens · C token width · D width of the image embedding · c latent channels ·
h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.diffusion.denoiser import Condition, Denoiser, TransformerConfig
from rebus.diffusion.draft import DraftConfig, DraftDecoder
from rebus.diffusion.flow import flow_loss, noise_like, sample
from rebus.diffusion.unclip import UnclipCondition
from rebus.mini.bank import IndexBatches
from rebus.mini.frozen import Frozen
from rebus.train.stage import Losses, Optim, Stage, Trainable

MINI_DENOISER = TransformerConfig()


@dataclass(frozen=True)
class Config:
    """The base denoiser's training."""

    denoiser: TransformerConfig = MINI_DENOISER
    """Shape of the network."""
    draft: DraftConfig = DraftConfig(linear=True)
    """Shape of the decoder that predicts a coarse latent from the image embedding."""
    shares: tuple[float, float, float, float, float] = (0.6, 0.1, 0.2, 0.05, 0.05)
    """How often a batch is told: embedding and draft, embedding alone, patch features, the caption, nothing."""
    untold: float = 0.1
    """Share of pictures in every batch that are told nothing, for classifier-free guidance."""
    levels: int = 200
    """Noise levels 0..levels−1 are drawn for the image embedding, so that embeddings that are a little wrong do."""
    shift: float = 1.5
    """More than 1 spends more steps at high noise."""
    fitted: int = 20_000
    """Pictures that the linear reading of a draft is fitted to."""
    batch: int = 48
    """Pictures of one step."""
    steps: int = 1500
    """Optimiser steps."""
    lr: float = 8e-4
    """Peak learning rate."""
    seed: int = 0
    """Order of the pictures and initial weights."""


CONFIGS = {"mini": Config()}


class DenoiserTraining(nn.Module):
    """Denoiser, draft, and the projection of a caption to one token."""

    def __init__(self, config: Config, caption_width: int) -> None:
        super().__init__()
        self.config = config
        self.denoiser = Denoiser(config.denoiser)
        self.draft = DraftDecoder(config.draft)
        self.caption = nn.Linear(caption_width, config.denoiser.token_width)
        self.unclip = UnclipCondition(config.draft.vector_width)

    def condition(self, kind: str, latents: Tensor, embedding: Tensor, patches: Tensor, caption: Tensor) -> Condition:
        """What the denoiser is told of each picture: `kind` is drafted, embedding, patches, caption or nothing."""
        blank = self.denoiser.blank(len(latents), like=latents)
        if kind in ("drafted", "embedding"):
            level = int(torch.randint(self.config.levels, ()))
            vector = self.unclip(embedding, level, torch.randn_like(embedding))
            extra = self.draft(embedding).detach() if kind == "drafted" else blank.extra_Iehw
            return Condition(blank.tokens_ISC, vector, extra.to(latents.dtype))
        if kind == "patches":
            return Condition(patches, blank.vector_ID, blank.extra_Iehw)
        if kind == "caption":
            return Condition(self.caption(caption)[:, None], blank.vector_ID, blank.extra_Iehw)
        return blank

    def losses(self, latents: Tensor, embedding: Tensor, patches: Tensor, caption: Tensor) -> Losses:
        """Velocity error of a batch told one kind of thing, and the draft's error."""
        kinds = ("drafted", "embedding", "patches", "caption", "nothing")
        kind = kinds[int(torch.multinomial(torch.tensor(self.config.shares), 1))]
        draft = F.mse_loss(self.draft(embedding).float(), latents)
        condition = self.condition(kind, latents, embedding, patches, caption)
        told_I = torch.rand(len(latents)) >= self.config.untold
        for part in ("tokens_ISC", "vector_ID", "extra_Iehw"):
            condition = condition.where(told_I, part)
        flow = flow_loss(self.denoiser, latents, condition, shift=self.config.shift)
        return Losses(flow + draft, {"draft": draft, f"flow_{kind}": flow})


def stage(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vae and mini.vision under `work`. Trains on cached latents and features of the bank."""
    torch.manual_seed(config.seed)
    data = Frozen(work)
    module = DenoiserTraining(config, caption_width=data.array("captions", "train").shape[1])
    if config.draft.linear:
        some = np.arange(min(config.fitted, len(data.bank("train"))))
        latents, embedding = data.rows("train", some, "latents", "embeddings")
        module.draft.fit_linear(embedding, latents)

    def step(module: DenoiserTraining, i: np.ndarray) -> Losses:
        latents, embedding, tokens, caption = data.rows("train", i, "latents", "embeddings", "tokens", "captions")
        return module.losses(latents, embedding, data.vision.norm(tokens)[:, 1:], caption)

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = data.singles("val", 64)
        latents, embedding = data.rows("val", singles, "latents", "embeddings")
        pixels, drafted = data.bank("val").pixels(singles), module.draft(embedding)
        yield "val/draft_mse", F.mse_loss(drafted, latents).item()
        yield "val/draft_psnr", psnr(data.codec.decode(drafted), pixels)
        label = module.unclip(embedding, 0, torch.zeros_like(embedding))
        blank = module.denoiser.blank(len(latents), like=latents)
        condition = Condition(blank.tokens_ISC, label, drafted)
        generators = [torch.Generator().manual_seed(int(k)) for k in range(len(latents))]
        noise = noise_like(latents.shape[1:], generators, like=latents)
        *_, (_, final) = sample(module.denoiser, noise, condition, blank, steps=12, guidance=1.5, shift=config.shift)
        yield "val/sample_psnr", psnr(data.codec.decode(final), pixels)

    return Stage(
        name="mini.denoiser",
        module=module,
        step=step,
        trainable=[Trainable("*", config.lr)],
        data=IndexBatches(len(data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(steps=config.steps, warmup=100, weight_decay=0.01, ema=0.998, min_lr_ratio=0.05),
        config=config,
    )


def psnr(rebuilt_I3HW: Tensor, pixels_I3HW: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pixels in −1..1."""
    error = (rebuilt_I3HW - pixels_I3HW).square().mean((1, 2, 3)) / 4
    return (-10 * error.clamp_min(1e-8).log10()).mean().item()


def load_denoiser(path: Path, config: Config | None = None) -> tuple[Denoiser, DraftDecoder]:
    """The trained base denoiser and its draft."""
    config = config or CONFIGS["mini"]
    weights = load_file(path)
    parts: tuple[Denoiser, DraftDecoder] = (Denoiser(config.denoiser), DraftDecoder(config.draft))
    for name, part in zip(("denoiser.", "draft."), parts, strict=True):
        part.load_state_dict({k.removeprefix(name): v.float() for k, v in weights.items() if k.startswith(name)})
    return parts
