"""The weights that LaVIT's stages wrote, as one saved system."""

from __future__ import annotations

from pathlib import Path

import torch

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.papers.lavit.reconstruction import RUNNING_MEANS
from rebus.papers.lavit.trained import pack_trained
from rebus.papers.lavit.variants import VARIANTS
from rebus.train.packing import Places, gather, spread

FIRST, SECOND = "lavit.stage1a_selector", "lavit.stage1b_codebook"
PLACES: Places = {
    "tokenizer": [(FIRST, "tokenizer."), (SECOND, "tokenizer.")],
    "lm": [("lavit.stage2_language", "lm."), ("lavit.stage4_instruct", "lm."), ("lavit.drawing", "lm.")],
    "detokenizer": [(FIRST, "detokenizer."), (SECOND, "detokenizer."), ("lavit.stage3_pixels", "detokenizer.")],
}
ELSEWHERE = ("codebook_KE", "codec.", "norm.")
"""How the names begin of what the detokenizer has from other parts."""


def pack(work: Path, folder: Path, variant: str = "mini") -> SavedSystem:
    """Writes `folder` from the weights of the stages under `work`, numbers as float16. The later stage's tensors are
    laid over the earlier's; shared parts are left to the base (`rebus.mini.pack`). Variants without shared parts are
    written by `pack_trained`."""
    config = VARIANTS[variant]
    if config.base is None:
        return pack_trained(work, folder, variant)
    parts = gather(work, PLACES)
    parts["tokenizer"] = {name: x for name, x in parts["tokenizer"].items() if not name.endswith(RUNNING_MEANS)}
    parts["detokenizer"] = {name: x for name, x in parts["detokenizer"].items() if not name.startswith(ELSEWHERE)}
    source = "trained by runs/lavit_mini.sh"
    system = SavedSystem(name=f"lavit:{variant}", config=config_to_json(config), source=source, base=config.base)
    return save_system(folder, system, parts, dtype=torch.float16, overwrite=True)


def unpack(folder: Path, work: Path) -> list[Path]:
    """Writes the weights of the stages under `work` from what `pack` wrote. Both phases of stage 1 get the tokenizer and
    what rebuilds features as they were in the end, stages 2 and 4 the language model: training goes on from there."""
    return spread(load_system(folder), work, PLACES)
