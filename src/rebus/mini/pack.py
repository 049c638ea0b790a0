"""The shared parts of the mini family as one saved system, `mini`, which the papers' minis are laid over."""

from __future__ import annotations

from pathlib import Path

import torch

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.mini import denoiser, vae, vision
from rebus.train.packing import Places, gather, spread

PLACES: Places = {
    "vision": [("mini.vision", "vision.")],
    "vae": [("mini.vae", "codec.")],
    "denoiser": [("mini.denoiser", "")],
}


def pack(work: Path, folder: Path) -> SavedSystem:
    """Writes `folder` from the weights of the three stages under `work`, numbers as float16."""
    configs = {
        "vision": vision.CONFIGS["mini"].vision,
        "vae": vae.CONFIGS["mini"].vae,
        "denoiser": denoiser.CONFIGS["mini"],
    }
    system = SavedSystem(name="mini", config=config_to_json(configs), source="trained by runs/seed_mini.sh")
    return save_system(folder, system, gather(work, PLACES), dtype=torch.float16, overwrite=True)


def unpack(folder: Path, work: Path) -> list[Path]:
    """Writes the weights of the three stages under `work` from what `pack` wrote, for training what builds on them."""
    return spread(load_system(folder), work, PLACES)
