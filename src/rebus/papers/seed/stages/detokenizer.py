"""SEED's image decoder: the base diffusion model learns to draw from the embeddings that codes give back.

The released SEED-LLaMA uses Stable unCLIP 2.1 as it is; the mini fine-tunes the mini base denoiser and its draft on what
stage 2 makes of the bank, so that it learns to undo the errors of the codes.

    rebus train seed.detokenizer --config mini --work state

Dimension key: I images · N codes · D width of the image embedding · c latent channels · h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.diffusion.flow import flow_loss
from rebus.mini.bank import IndexBatches
from rebus.mini.denoiser import load_denoiser, psnr
from rebus.mini.frozen import Frozen, take
from rebus.papers.seed.detokenizer import SeedDetokenizer, SeedDetokenizerConfig
from rebus.papers.seed.stages.stage2_codebook import bank_codes, load_tokenizer
from rebus.papers.seed.variants import MINI_TOKENIZER
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes, ImageSampling


@dataclass(frozen=True)
class Config:
    """The fine-tuning of the mini image decoder."""

    detokenizer: SeedDetokenizerConfig = field(default_factory=SeedDetokenizerConfig)
    """Shape and drawing defaults."""
    true_share: float = 0.25
    """Share of the batches that are told the true image embedding instead of the one that codes give."""
    untold: float = 0.1
    """Share of pictures that are told nothing, for classifier-free guidance."""
    levels: int = 50
    """Noise levels 0..levels−1 are drawn for the image embedding."""
    batch: int = 48
    """Pictures of one step."""
    steps: int = 250
    """Optimiser steps."""
    lr: float = 4e-4
    """Peak learning rate."""
    seed: int = 0
    """Order of the pictures."""


CONFIGS = {"mini": Config()}


class DetokenizerTraining(nn.Module):
    """The detokenizer, told embeddings."""

    def __init__(self, config: Config, detokenizer: SeedDetokenizer) -> None:
        super().__init__()
        self.config = config
        self.detokenizer = detokenizer

    def losses(self, latents: Tensor, embedding_ID: Tensor) -> Losses:
        """Velocity error and the draft's error."""
        model = self.detokenizer
        level = int(torch.randint(self.config.levels, ()))
        condition = model.condition(embedding_ID, level, torch.randn_like(embedding_ID))
        draft = F.mse_loss(condition.extra_Iehw.float(), latents)
        told_I = torch.rand(len(latents)) >= self.config.untold
        for part in ("tokens_ISC", "vector_ID", "extra_Iehw"):
            condition = condition.where(told_I, part)
        flow = flow_loss(model.denoiser, latents, condition.detach(), shift=model.config.shift)
        return Losses(flow + draft, {"flow": flow, "draft": draft})


def stage(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vae, mini.vision, mini.denoiser and SEED's stages 1 and 2 under `work`."""
    torch.manual_seed(config.seed)
    data = Frozen(work)
    weights = [work / f"seed.{name}" / "weights.safetensors" for name in ("stage1_qformer", "stage2_codebook")]
    tokenizer = load_tokenizer(MINI_TOKENIZER, *weights)
    tokenizer.visual_encoder.load_state_dict(data.vision.vit.state_dict())
    model = SeedDetokenizer(config.detokenizer, tokenizer.eval().requires_grad_(False))
    denoiser, draft = load_denoiser(work / "mini.denoiser" / "weights.safetensors")
    model.denoiser.load_state_dict(denoiser.state_dict())
    model.draft.load_state_dict(draft.state_dict())
    model.codec.load_state_dict(data.codec.state_dict())

    def coded(split: str) -> np.ndarray:
        codes = bank_codes(data, split, tokenizer)
        return data.derive(
            "seed_embeddings", split, lambda i: tokenizer.image_embedding(torch.from_numpy(np.array(codes[i])))
        )

    module = DetokenizerTraining(config, model)

    def step(module: DetokenizerTraining, i: np.ndarray) -> Losses:
        latents, true = data.rows("train", i, "latents", "embeddings")
        told = true if torch.rand(()) < config.true_share else take(coded("train"), i)
        return module.losses(latents, told)

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = data.singles("val", 64)
        pixels = data.bank("val").pixels(singles)
        codes = [Codes(torch.from_numpy(row), tokenizer.source) for row in bank_codes(data, "val", tokenizer)[singles]]
        drawn = model.decode(
            codes,
            sources=[None] * 64,
            negatives=[None] * 64,
            generators=[torch.Generator().manual_seed(k) for k in range(64)],
            sampling=ImageSampling(),
        )
        images = [np.asarray(image) for image in drawn if not hasattr(image, "step")]
        rebuilt = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        yield "val/codes_psnr", psnr(rebuilt, pixels)
        drafted = model.draft(take(coded("val"), singles))
        yield "val/codes_draft_psnr", psnr(model.codec.decode(drafted), pixels)

    return Stage(
        name="seed.detokenizer",
        module=module,
        step=step,
        trainable=[Trainable("detokenizer.denoiser.*", config.lr), Trainable("detokenizer.draft.*", config.lr)],
        data=IndexBatches(len(data.bank("train")), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(steps=config.steps, warmup=50, weight_decay=0.01, ema=0.998, min_lr_ratio=0.05),
        config=config,
    )
