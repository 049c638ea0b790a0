"""mini-vae: the latent codec of the mini family, the stand-in for Stable Diffusion's VAE.

64 px pictures to standardised latents of 16×16×4. L1 + 0.5 MSE + a small KL term.

    rebus train mini.vae --config mini --work state

Dimension key: I images · H W pixels
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from rebus.diffusion.vae import LatentCodec, VaeConfig
from rebus.mini.bank import Bank, IndexBatches, load_bank
from rebus.train.stage import Losses, Optim, Stage, Trainable


@dataclass(frozen=True)
class Config:
    """mini-vae's training."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    """Shape of the autoencoder."""
    kl_weight: float = 1e-3
    """Weight of the KL term (mean over latent values)."""
    batch: int = 32
    """Pictures of one step."""
    steps: int = 1500
    """Optimiser steps."""
    lr: float = 1.2e-3
    """Peak learning rate, cosine."""
    seed: int = 0
    """Order of the pictures and initial weights."""


CONFIGS = {
    "mini": Config(),
    "tiny": Config(vae=VaeConfig(unshuffle=4, channels=(32, 32)), batch=4, steps=2),
}


class VaeTraining(torch.nn.Module):
    """The codec with the noise source of its posterior."""

    def __init__(self, codec: LatentCodec, bank: Bank, kl_weight: float):
        super().__init__()
        self.codec, self.bank, self.kl_weight = codec, bank, kl_weight

    def losses(self, indices: np.ndarray) -> Losses:
        """L1 + 0.5 MSE of the picture rebuilt from a sample of the posterior, and KL to the unit normal."""
        pixels = self.bank.pixels(indices)
        mean, logvar = self.codec.posterior(pixels)
        mean, logvar = mean.float(), logvar.float()
        sample = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        rebuilt = self.codec.decode_raw(sample).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        l1, mse = F.l1_loss(rebuilt, pixels), F.mse_loss(rebuilt, pixels)
        return Losses(l1 + 0.5 * mse + self.kl_weight * kl, {"l1": l1, "mse": mse, "kl": kl})


def stage(config: Config, work: Path) -> Stage:
    """Trains on the bank of split `train`; measures on `val`."""
    torch.manual_seed(config.seed)
    train, val = load_bank(work, "train"), load_bank(work, "val")
    codec = LatentCodec(config.vae)
    module = VaeTraining(codec, train, config.kl_weight)

    def evaluate() -> Iterator[tuple[str, float]]:
        codec.measure(train.pixels(np.arange(1024)))
        yield "val/psnr", psnr(codec, val)

    return Stage(
        name="mini.vae",
        module=module,
        step=lambda module, indices: module.losses(indices),
        trainable=[Trainable("codec.*", config.lr)],
        data=IndexBatches(len(train), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=Optim(steps=config.steps, warmup=100, weight_decay=0.01),
        config=config,
    )


@torch.no_grad()
def psnr(codec: LatentCodec, bank: Bank, n: int = 512) -> float:
    """Mean peak signal-to-noise ratio in dB of `n` pictures through encode and decode."""
    values = []
    for start in range(0, n, 128):
        pixels = bank.pixels(np.arange(start, min(start + 128, n)))
        mse = (codec.decode(codec.encode(pixels)) - pixels).square().mean((1, 2, 3)) / 4
        values.append(-10 * mse.clamp_min(1e-8).log10())
    return torch.cat(values).mean().item()


def load_codec(path: Path, config: VaeConfig | None = None) -> LatentCodec:
    """The trained codec, frozen."""
    codec = LatentCodec(config or CONFIGS["mini"].vae)
    codec.load_state_dict({k.removeprefix("codec."): v.float() for k, v in load_file(path).items()})
    return codec.eval().requires_grad_(False)
