"""The shared parts of the mini family as one saved system, `mini`, which the papers' minis are laid over."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.mini import denoiser, vae, vision

KEPT = {"vision": ("mini.vision", "vision."), "vae": ("mini.vae", "codec."), "denoiser": ("mini.denoiser", "")}
"""Part → the stage that trained it, and the names to keep, without this beginning."""


def pack(work: Path, folder: Path) -> SavedSystem:
    """Writes `folder` from the weights of the three stages under `work`, numbers as float16."""
    parts = {}
    for part, (stage, prefix) in KEPT.items():
        found = load_file(work / stage / "weights.safetensors")
        parts[part] = {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
    configs = {
        "vision": vision.CONFIGS["mini"].vision,
        "vae": vae.CONFIGS["mini"].vae,
        "denoiser": denoiser.CONFIGS["mini"],
    }
    system = SavedSystem(name="mini", config=config_to_json(configs), source="trained by runs/seed_mini.sh")
    return save_system(folder, system, parts, dtype=torch.float16, overwrite=True)
