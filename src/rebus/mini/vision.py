"""mini-vit: the vision encoder of the mini family, the stand-in for EVA-CLIP, with an image embedding of its own.

Trained so that its vectors know both what is there and what it looks like: contrastive against frozen sentence vectors,
and two small decoders must rebuild the picture, one from the patch features, one from the image embedding.

    rebus train mini.vision --config mini --work state

Dimension key: I images · N tokens (class token first) · C width · D width of the image embedding
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.diffusion.draft import DraftConfig, DraftDecoder
from rebus.mini.bank import IndexBatches, caption_vectors, load_bank
from rebus.nn.vit import ViT, ViTConfig
from rebus.train.stage import Losses, Optim, Stage, Trainable

MINI_VIT = ViTConfig(image_size=64, patch=8, width=192, depth=6, heads=4, mlp_hidden=768)


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the mini vision encoder."""

    vit: ViTConfig = MINI_VIT
    """The transformer."""
    embedding: int = 512
    """Width of the image embedding."""
    per_patch: int = 8
    """Numbers of each patch that reach the image embedding, so that it knows where things are."""


class MiniVision(nn.Module):
    """Pixels [I, 3, 64, 64] in −1..1 → token vectors and one image embedding."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patches = config.vit.width, config.vit.grid**2
        self.vit = ViT(config.vit)
        self.norm = nn.LayerNorm(width)
        self.patch_down = nn.Linear(width, config.per_patch)
        self.pool = nn.Linear(patches * config.per_patch + width, config.embedding)
        self.embedding_norm = nn.LayerNorm(config.embedding, elementwise_affine=False)

    def embed(self, x_INC: Tensor) -> Tensor:
        """The image embedding [I, D] of the transformer's output: every vector has mean 0 and variance 1."""
        x_INC = self.norm(x_INC)
        flat = rearrange(self.patch_down(x_INC[:, 1:]), "i n k -> i (n k)")
        return self.embedding_norm(self.pool(torch.cat([x_INC[:, 0], flat], dim=-1)))

    def forward(self, pixels_I3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Token vectors [I, N, C] and the image embedding [I, D]."""
        x_INC = self.vit(pixels_I3hw)
        return x_INC, self.embed(x_INC)


@dataclass(frozen=True)
class Config:
    """mini-vit's training."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """Shape of the encoder."""
    decoder: DraftConfig = DraftConfig(latent_channels=48)
    """Shape of the decoder from the image embedding; its 16×16×48 are the 64 px picture, folded four times four."""
    contrast_width: int = 256
    """Width in which images and captions meet."""
    patch_weight: float = 1.0
    """Weight of the picture rebuilt from patch features."""
    decoder_weight: float = 4.0
    """Weight of the picture rebuilt from the image embedding."""
    batch: int = 64
    """Pictures of one step."""
    steps: int = 1800
    """Optimiser steps."""
    lr: float = 8e-4
    """Peak learning rate, cosine."""
    seed: int = 0
    """Order of the pictures and initial weights."""


CONFIGS = {"mini": Config()}


class VisionTraining(nn.Module):
    """The encoder with the heads that only training needs."""

    def __init__(self, config: Config, text_width: int):
        super().__init__()
        vit = config.vision.vit
        self.vision = MiniVision(config.vision)
        self.decoder = DraftDecoder(config.decoder)
        self.patch_pixels = nn.Linear(vit.width, 3 * vit.patch**2)
        self.image_proj = nn.Linear(config.vision.embedding, config.contrast_width)
        self.text_proj = nn.Linear(text_width, config.contrast_width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.patch_weight, self.decoder_weight = config.patch_weight, config.decoder_weight

    def picture(self, embedding_ID: Tensor) -> Tensor:
        """The picture [I, 3, 64, 64] in −1..1 as rebuilt from the image embedding."""
        return F.pixel_shuffle(self.decoder(embedding_ID), 4)

    def losses(self, pixels: Tensor, text: Tensor, same: Tensor) -> Losses:
        """`text` sentence vectors; `same[i, j]` true where two captions are equal."""
        x_INC, embedding = self.vision(pixels)
        image = F.normalize(self.image_proj(embedding).float(), dim=-1)
        caption = F.normalize(self.text_proj(text).float(), dim=-1)
        logits = image @ caption.T * self.log_scale.exp().clamp(max=50)
        target = same.float() / same.float().sum(1, keepdim=True)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        patches = self.patch_pixels(self.vision.norm(x_INC)[:, 1:]).float()
        side, patch = self.vision.config.vit.grid, self.vision.config.vit.patch
        from_patches = rearrange(patches, "i (h w) (c a b) -> i c (h a) (w b)", h=side, a=patch, b=patch)
        patch_mse = F.mse_loss(from_patches, pixels)
        mse = F.mse_loss(self.picture(embedding).float(), pixels)
        total = contrast + self.patch_weight * patch_mse + self.decoder_weight * mse
        return Losses(total, {"contrast": contrast, "patch_mse": patch_mse, "embedding_mse": mse})


def stage(config: Config, work: Path) -> Stage:
    """Trains on the bank of split `train`; measures on `val`."""
    torch.manual_seed(config.seed)
    train, val = load_bank(work, "train"), load_bank(work, "val")
    text = caption_vectors(work, train, "train")
    caption_ids = np.unique(np.array(train.captions), return_inverse=True)[1]
    module = VisionTraining(config, text_width=text.shape[1])

    def step(module: VisionTraining, i: np.ndarray) -> Losses:
        same = torch.from_numpy(caption_ids[i][:, None] == caption_ids[i][None])
        return module.losses(train.pixels(i), torch.from_numpy(text[i]).float(), same)

    singles = np.flatnonzero(np.array(val.kinds) == "single")[:512]
    val_text = torch.from_numpy(caption_vectors(work, val, "val")[singles]).float()
    val_ids = np.unique(np.array(val.captions)[singles], return_inverse=True)[1]

    def evaluate() -> Iterator[tuple[str, float]]:
        x_INC, embedding = module.vision(val.pixels(singles))
        image = F.normalize(module.image_proj(embedding), dim=-1)
        best = (image @ F.normalize(module.text_proj(val_text), dim=-1).T).argmax(1).numpy()
        yield "val/r_at_1", float((val_ids[best] == val_ids).mean())
        error = (module.picture(embedding).clamp(-1, 1) - val.pixels(singles)).square().mean((1, 2, 3)) / 4
        yield "val/embedding_psnr", (-10 * error.log10()).mean().item()

    return Stage(
        name="mini.vision",
        module=module,
        step=step,
        trainable=[Trainable("*", config.lr)],
        data=IndexBatches(len(train), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(steps=config.steps, warmup=100, weight_decay=0.05),
        config=config,
    )


def load_vision(path: Path, config: VisionConfig | None = None) -> MiniVision:
    """The trained encoder, frozen."""
    vision = MiniVision(config or VisionConfig())
    weights = {k.removeprefix("vision."): v.float() for k, v in load_file(path).items() if k.startswith("vision.")}
    vision.load_state_dict(weights)
    return vision.eval().requires_grad_(False)
