"""The weights that SEED's stages wrote, as one saved system."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from rebus.checkpoint import SavedSystem, config_to_json, save_system
from rebus.papers.seed.variants import VARIANTS

TOKENIZER = ("seed.stage1_qformer", "seed.stage2_codebook")


def pack(work: Path, folder: Path, variant: str = "mini") -> SavedSystem:
    """Writes `folder` from the weights of the stages under `work`, numbers as float16. The later stage's tensors are
    laid over the earlier's; shared parts are left to the base (`rebus.mini.pack`)."""
    config = VARIANTS[variant]
    seen: dict[str, torch.Tensor] = {}
    for stage in TOKENIZER:
        seen |= _part(work / stage, "tokenizer.")
    drawn = _part(work / "seed.detokenizer", "detokenizer.")
    parts = {
        "tokenizer": seen,
        "lm": _part(work / "seed.stage4_instruct", "lm.llm."),
        "detokenizer": {k: v for k, v in drawn.items() if k.startswith(("denoiser.", "draft.", "unclip."))},
    }
    source = "trained by runs/seed_mini.sh"
    system = SavedSystem(name=f"seed:{variant}", config=config_to_json(config), source=source, base=config.base)
    return save_system(folder, system, parts, dtype=torch.float16, overwrite=True)


def _part(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    found = load_file(folder / "weights.safetensors")
    return {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
