"""mini-vit: the vision encoder of the mini family, the stand-in for EVA-CLIP, with an image embedding of its own.

Trained so that its vectors know both what is there and what it looks like: contrastive against frozen sentence vectors,
of the captions of a batch, and of all names at once for pictures of one thing, which are moved and tinted anew each time;
and the picture must be rebuilt linearly, from the patch features and from the image embedding. The embedding has two
parts. The first are the picture's principal components, each as large as it counts in pixels, so that an error in the
embedding costs what it costs in the picture; the second is the vector that the contrast is about.

    rebus train mini.vision --config mini --work state

Dimension key: I images · N tokens (class token first) · C width · D width of the image embedding · P principal
components · X numbers of a picture
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

from rebus.mini.bank import IndexBatches, caption_vectors, load_bank
from rebus.mini.moving import moved
from rebus.mini.named import load_named
from rebus.nn.vit import ViT, ViTConfig
from rebus.train.stage import Losses, Optim, Stage, Trainable

MINI_VIT = ViTConfig(image_size=64, patch=8, width=192, depth=6, heads=4, mlp_hidden=768)


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the mini vision encoder."""

    vit: ViTConfig = MINI_VIT
    """The transformer."""
    components: int = 384
    """Principal components in the image embedding."""
    contrast: int = 128
    """Width of the contrastive vector in it."""
    per_patch: int = 16
    """Numbers of each patch that reach the image embedding, so that it knows where things are."""

    @property
    def embedding(self) -> int:
        """Width of the image embedding."""
        return self.components + self.contrast


class MiniVision(nn.Module):
    """Pixels [I, 3, 64, 64] in −1..1 → token vectors and one image embedding."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patches = config.vit.width, config.vit.grid**2
        self.vit = ViT(config.vit)
        self.norm = nn.LayerNorm(width)
        self.patch_down = nn.Linear(width, config.per_patch)
        self.component_head = nn.Linear(patches * config.per_patch, config.components)
        self.contrast_head = nn.Linear(patches * config.per_patch + width, config.contrast)

    def embed(self, x_INC: Tensor) -> Tensor:
        """The image embedding [I, D] of the transformer's output."""
        x_INC = self.norm(x_INC)
        flat = rearrange(self.patch_down(x_INC[:, 1:]), "i n k -> i (n k)")
        contrast = F.normalize(self.contrast_head(torch.cat([x_INC[:, 0], flat], dim=-1)).float(), dim=-1)
        length = math.sqrt(self.config.contrast)  # a number's mean square is then 1, as is a component's on the average
        return torch.cat([self.component_head(flat).float(), length * contrast], dim=-1)

    def forward(self, pixels_I3hw: Tensor) -> tuple[Tensor, Tensor]:
        """Token vectors [I, N, C] and the image embedding [I, D]."""
        x_INC = self.vit(pixels_I3hw)
        return x_INC, self.embed(x_INC)


@dataclass(frozen=True)
class Config:
    """mini-vit's training."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    """Shape of the encoder."""
    patch_weight: float = 1.0
    """Weight of the picture rebuilt from patch features."""
    component_weight: float = 4.0
    """Weight of the principal components."""
    component_pictures: int = 20_000
    """Pictures of the bank that the principal components are taken from."""
    batch: int = 64
    """Pictures of one step, with their captions."""
    named: int = 64
    """Pictures of one thing that are added to a step, each to be told from all trained names; 0: none. Among the few
    captions of a batch a name is found too easily: without these pictures the nearest trained picture of 144 of `val`,
    things trained in other styles, had the right name for 33 %, with them for 47 %."""
    name_weight: float = 0.5
    """Weight of the error in telling names."""
    steps: int = 3000
    """Optimiser steps."""
    lr: float = 8e-4
    """Peak learning rate, cosine."""
    seed: int = 0
    """Order of the pictures and initial weights."""


CONFIGS = {"mini": Config()}


class PrincipalComponents(nn.Module):
    """The principal components of pictures, scaled so that their mean square is 1."""

    mean_X: Tensor
    basis_XP: Tensor

    def __init__(self, pixels_TX: Tensor, components: int) -> None:
        super().__init__()
        mean_X = pixels_TX.mean(0)
        _, deviation_P, basis_XP = torch.svd_lowrank(pixels_TX - mean_X, q=components, niter=2)
        scale = (deviation_P.square().sum() / (len(pixels_TX) * components)).sqrt()
        self.register_buffer("mean_X", mean_X, persistent=False)
        self.register_buffer("basis_XP", basis_XP * scale, persistent=False)
        self.square = float(scale) ** 2

    def forward(self, pixels_I3HW: Tensor) -> Tensor:
        """The components [I, P] of pictures."""
        return (pixels_I3HW.flatten(1) - self.mean_X) @ self.basis_XP / self.square

    def picture(self, components_IP: Tensor) -> Tensor:
        """The pictures [I, X] of components, laid flat."""
        return self.mean_X + components_IP @ self.basis_XP.T


class VisionTraining(nn.Module):
    """The encoder with the heads that only training needs."""

    def __init__(self, config: Config, text_width: int, components: PrincipalComponents) -> None:
        super().__init__()
        vit = config.vision.vit
        self.vision = MiniVision(config.vision)
        self.components = components
        self.patch_pixels = nn.Linear(vit.width, 3 * vit.patch**2)
        self.text_proj = nn.Linear(text_width, config.vision.contrast)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.config = config

    def picture(self, embedding_ID: Tensor) -> Tensor:
        """The picture [I, 3, 64, 64] in −1..1 as rebuilt from the image embedding."""
        side = self.vision.config.vit.image_size
        flat = self.components.picture(embedding_ID[:, : self.vision.config.components])
        return flat.view(-1, 3, side, side)

    def similarity(self, embedding_ID: Tensor, text_IT: Tensor) -> Tensor:
        """Cosines of every picture with every caption."""
        image = F.normalize(embedding_ID[:, self.vision.config.components :], dim=-1)
        return image @ F.normalize(self.text_proj(text_IT).float(), dim=-1).T

    def telling(self, pixels: Tensor, names_QT: Tensor) -> Tensor:
        """logits_IQ of pictures over all names, given as sentence vectors."""
        _, embedding_ID = self.vision(pixels)
        return self.similarity(embedding_ID, names_QT) * self.log_scale.exp().clamp(max=50)

    def losses(self, pixels: Tensor, text: Tensor, same: Tensor, told: Tensor | None = None) -> Losses:
        """`text` sentence vectors; `same[i, j]` true where two captions are equal; `told` the error in telling names."""
        x_INC, embedding = self.vision(pixels)
        logits = self.similarity(embedding, text) * self.log_scale.exp().clamp(max=50)
        target = same.float() / same.float().sum(1, keepdim=True)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        patches = self.patch_pixels(self.vision.norm(x_INC)[:, 1:]).float()
        side, patch = self.vision.config.vit.grid, self.vision.config.vit.patch
        from_patches = rearrange(patches, "i (h w) (c a b) -> i c (h a) (w b)", h=side, a=patch, b=patch)
        patch_mse = F.mse_loss(from_patches, pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            components = self.components(pixels)
        component_mse = F.mse_loss(embedding[:, : components.shape[1]], components)
        total = contrast + self.config.patch_weight * patch_mse + self.config.component_weight * component_mse
        parts = {"contrast": contrast, "patch_mse": patch_mse, "component_mse": component_mse}
        if told is None:
            return Losses(total, parts)
        return Losses(total + self.config.name_weight * told, {**parts, "names": told})


def stage(config: Config, work: Path) -> Stage:
    """Trains on the bank of split `train`; measures on `val`."""
    torch.manual_seed(config.seed)
    train, val = load_bank(work, "train"), load_bank(work, "val")
    text = caption_vectors(work, train, "train")
    caption_ids = np.unique(np.array(train.captions), return_inverse=True)[1]
    some = train.pixels(np.arange(min(config.component_pictures, len(train)))).flatten(1)
    module = VisionTraining(config, text.shape[1], PrincipalComponents(some, config.vision.components))

    generator = torch.Generator().manual_seed(config.seed)
    named, unseen = (load_named(work, split) if config.named else None for split in ("train", "val"))

    def told(module: VisionTraining) -> Tensor | None:
        if named is None:
            return None
        k, device = torch.randint(len(named), (config.named,), generator=generator), module.log_scale.device
        logits_IQ = module.telling(moved(named.pixels(k), generator).to(device), named.vectors_QT.to(device))
        return F.cross_entropy(logits_IQ, named.name_N[k].to(device), label_smoothing=0.05)

    def step(module: VisionTraining, i: np.ndarray) -> Losses:
        same, device = torch.from_numpy(caption_ids[i][:, None] == caption_ids[i][None]), module.log_scale.device
        words = torch.from_numpy(text[i]).float()
        return module.losses(train.pixels(i).to(device), words.to(device), same.to(device), told(module))

    singles = np.flatnonzero(np.array(val.kinds) == "single")[:512]
    val_text = torch.from_numpy(caption_vectors(work, val, "val")[singles]).float()
    val_ids = np.unique(np.array(val.captions)[singles], return_inverse=True)[1]

    def evaluate() -> Iterator[tuple[str, float]]:
        _, embedding = module.vision(val.pixels(singles))
        best = module.similarity(embedding, val_text).argmax(1).numpy()
        yield "val/r_at_1", float((val_ids[best] == val_ids).mean())
        error = (module.picture(embedding).clamp(-1, 1) - val.pixels(singles)).square().mean((1, 2, 3)) / 4
        yield "val/embedding_psnr", (-10 * error.log10()).mean().item()
        if unseen is not None and len(unseen):
            device = module.log_scale.device
            logits_IQ = module.telling(
                unseen.pixels(torch.arange(len(unseen))).to(device), unseen.vectors_QT.to(device)
            )
            yield "val/named", (logits_IQ.argmax(1).cpu() == unseen.name_N).float().mean().item()

    return Stage(
        name="mini.vision",
        module=module,
        step=step,
        trainable=[Trainable("*", config.lr)],
        data=IndexBatches(len(train), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(steps=config.steps, warmup=100, weight_decay=0.05),
        config=config,
        generators={"names": generator},
    )


def load_vision(path: Path, config: VisionConfig | None = None) -> MiniVision:
    """The trained encoder, frozen."""
    vision = MiniVision(config or VisionConfig())
    weights = {k.removeprefix("vision."): v.float() for k, v in load_file(path).items() if k.startswith("vision.")}
    vision.load_state_dict(weights)
    return vision.eval().requires_grad_(False)
