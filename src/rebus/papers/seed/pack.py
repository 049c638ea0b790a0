"""The weights that SEED's stages wrote, as one saved system."""

from __future__ import annotations

from pathlib import Path

import torch

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.papers.seed.trained import pack_trained
from rebus.papers.seed.variants import VARIANTS
from rebus.train.packing import Places, gather, spread

PLACES: Places = {
    "tokenizer": [("seed.stage1_qformer", "tokenizer."), ("seed.stage2_codebook", "tokenizer.")],
    "lm": [("seed.stage3_pretrain", "lm.llm."), ("seed.stage4_instruct", "lm.llm.")],
    "detokenizer": [("seed.detokenizer", "detokenizer.")],
}
DRAWN = ("denoiser.", "draft.", "unclip.")
"""How the names begin of what is the detokenizer's own; the codec and the codes are other parts'."""


def pack(work: Path, folder: Path, variant: str = "mini") -> SavedSystem:
    """Writes `folder` from the weights of the stages under `work`, numbers as float16. The later stage's tensors are
    laid over the earlier's; shared parts are left to the base (`rebus.mini.pack`). Variants without shared parts are
    written by `pack_trained`."""
    config = VARIANTS[variant]
    if config.base is None:
        return pack_trained(work, folder, variant)
    parts = gather(work, PLACES)
    parts["detokenizer"] = {name: x for name, x in parts["detokenizer"].items() if name.startswith(DRAWN)}
    source = "trained by runs/seed_mini.sh"
    system = SavedSystem(name=f"seed:{variant}", config=config_to_json(config), source=source, base=config.base)
    return save_system(folder, system, parts, dtype=torch.float16, overwrite=True)


def unpack(folder: Path, work: Path) -> list[Path]:
    """Writes the weights of the stages under `work` from what `pack` wrote. Stages 1 and 2 both get the tokenizer as it
    was in the end, stages 3 and 4 the language model: training stage 4 again goes on from there."""
    return spread(load_system(folder), work, PLACES)
