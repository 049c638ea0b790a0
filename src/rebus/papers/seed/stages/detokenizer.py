"""SEED's image decoder: the base diffusion model learns to draw from what codes give back.

The released SEED-LLaMA uses Stable unCLIP 2.1 as it is; the mini fine-tunes the mini base denoiser and its draft on what
stage 2 makes of the bank, so that it learns to undo the errors of the codes. SEED v1 says of its decoder only that it is
Stable Diffusion told the codes' states as a prompt's; its mini is fine-tuned on the states in the same way (our choice).

    rebus train seed.detokenizer --config mini --work state
    rebus train seed.detokenizer --config v1-mini --work state/v1 --out state/v1/seed.detokenizer

Dimension key: I images · N codes · S states · C their width · D width of the image embedding · c latent channels ·
h w latent sides
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.mini.bank import IndexBatches
from rebus.mini.denoiser import load_denoiser, psnr
from rebus.mini.frozen import Frozen, fingerprint, take
from rebus.mini.looks import Looks, LooksConfig, Shown, drawing_losses, load_looks, weighed
from rebus.mini.named_stage import read_stage
from rebus.papers.seed.bank import bank_codes, read_vision
from rebus.papers.seed.detokenizer import (
    SeedDetokenizer,
    SeedDetokenizerConfig,
    StatesDetokenizer,
    StatesDetokenizerConfig,
    mini_detokenizer,
)
from rebus.papers.seed.stages.stage2_codebook import load_tokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import MINI_TOKENIZER, V1_MINI
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes, ImageSampling


@dataclass(frozen=True)
class Config:
    """The fine-tuning of the mini image decoder."""

    tokenizer: SeedTokenizerConfig = MINI_TOKENIZER
    """The tokenizer whose codes are drawn."""
    detokenizer: SeedDetokenizerConfig | StatesDetokenizerConfig = field(default_factory=SeedDetokenizerConfig)
    """Shape and drawing defaults."""
    true_share: float = 0.25
    """Share of the batches that are told the true image embedding or states instead of what codes give back."""
    untold: float = 0.1
    """Share of pictures that are told nothing, for classifier-free guidance."""
    levels: int = 50
    """Noise levels 0..levels−1 are drawn for the image embedding. (States have none.)"""
    batch: int = 48
    """Pictures of one step."""
    steps: int = 4200
    """Optimiser steps."""
    lr: float = 4e-4
    """Peak learning rate."""
    looks: LooksConfig = LooksConfig()
    """How much it counts what pictures look like."""
    singles: int = 1
    """How many times as often as others pictures of one thing come."""
    begin: str | None = None
    """A run of this stage under the work folder whose weights it goes on from; none: the base denoiser's."""
    seed: int = 0
    """Order of the pictures."""


CONFIGS = {
    "mini": Config(),
    # longer: its draft begins as noise, and the base was told least of what comes through attention
    "v1-mini": Config(tokenizer=V1_MINI.tokenizer, detokenizer=StatesDetokenizerConfig(), steps=700, lr=6e-4),
}


class DetokenizerTraining(nn.Module):
    """The detokenizer, told embeddings or states."""

    def __init__(
        self, config: Config, detokenizer: SeedDetokenizer | StatesDetokenizer, looks: Looks | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.detokenizer = detokenizer
        self.looks = looks

    def losses(self, latents: Tensor, given: Tensor, pixels: Tensor) -> Losses:
        """Velocity error, the draft's error, and where it counts what the pictures look like. `given` are image embeddings [I, D] or states_ISC."""
        model = self.detokenizer
        if isinstance(model, SeedDetokenizer):
            level = int(torch.randint(self.config.levels, ()))
            condition = model.condition(given, level, torch.randn_like(given))
        else:
            condition = model.condition(given)
        draft = F.mse_loss(condition.extra_Iehw.float(), latents)
        told_I = torch.rand(len(latents)) >= self.config.untold
        for part in ("tokens_ISC", "vector_ID", "extra_Iehw"):
            condition = condition.where(told_I, part)
        drawn, parts = drawing_losses(
            model.denoiser,
            model.codec,
            self.looks,
            self.config.looks,
            Shown(latents, pixels, told_I),
            condition.detach(),
            shift=model.config.shift,
        )
        return Losses(drawn + draft, {**parts, "draft": draft})


def stage(config: Config, work: Path) -> Stage:
    """Needs the weights of mini.vae, mini.vision, mini.denoiser and SEED's stages 1 and 2 under `work`."""
    torch.manual_seed(config.seed)
    data = Frozen(work)
    weights = [work / f"seed.{name}" / "weights.safetensors" for name in ("stage1_qformer", "stage2_codebook")]
    tokenizer = load_tokenizer(config.tokenizer, *weights)
    read_vision(tokenizer, data.vision)
    model = mini_detokenizer(config.detokenizer, tokenizer.eval().requires_grad_(False))
    denoiser, draft = load_denoiser(work / "mini.denoiser" / "weights.safetensors")
    model.denoiser.load_state_dict(denoiser.state_dict())
    if isinstance(model, SeedDetokenizer):
        model.draft.load_state_dict(draft.state_dict())
    model.codec.load_state_dict(data.codec.state_dict())

    @torch.no_grad()
    def rebuilt(split: str, i: np.ndarray) -> Tensor:
        codes = bank_codes(data, split, tokenizer)
        return tokenizer.image_embedding(torch.from_numpy(np.array(codes[i])))

    frozen = fingerprint(tokenizer, data.vision_print)

    def coded(split: str, i: np.ndarray) -> Tensor:
        if isinstance(model, StatesDetokenizer):
            return rebuilt(split, i)  # to keep the states of the whole bank would take a gigabyte
        return take(data.derive("seed_embeddings", split, lambda i: rebuilt(split, i), of=frozen), i)

    def true(split: str, i: np.ndarray) -> Tensor:
        return data.states(split, i) if isinstance(model, StatesDetokenizer) else data.rows(split, i, "embeddings")[0]

    module = DetokenizerTraining(config, model, load_looks(config.looks))
    if config.begin is not None:
        read_stage(module, work / config.begin)
    order = weighed(data, config.singles)

    def step(module: DetokenizerTraining, numbers: np.ndarray) -> Losses:
        i = order[numbers]
        (latents,) = data.rows("train", i, "latents")
        told = true if torch.rand(()) < config.true_share else coded
        return module.losses(latents, told("train", i), data.bank("train").pixels(i))

    def evaluate() -> Iterator[tuple[str, float]]:
        singles = data.singles("val", 64)
        pixels = data.bank("val").pixels(singles)
        codes = [Codes(torch.from_numpy(row), tokenizer.source) for row in bank_codes(data, "val", tokenizer)[singles]]
        drawn = model.decode(
            codes,
            sources=[None] * len(codes),
            negatives=[None] * len(codes),
            generators=[torch.Generator().manual_seed(k) for k in range(len(codes))],
            sampling=ImageSampling(),
        )
        images = [np.asarray(image) for image in drawn if not hasattr(image, "step")]
        rebuilt = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        yield "val/codes_psnr", psnr(rebuilt, pixels)
        drafted = model.draft(coded("val", singles))
        yield "val/codes_draft_psnr", psnr(model.codec.decode(drafted), pixels)

    return Stage(
        name="seed.detokenizer",
        module=module,
        step=step,
        trainable=[Trainable(f"detokenizer.{part}.*", config.lr) for part in ("denoiser", "draft")],
        data=IndexBatches(len(order), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(
            steps=config.steps, warmup=min(50, config.steps // 5), weight_decay=0.01, ema=0.998, min_lr_ratio=0.05
        ),
        config=config,
    )
