"""The weights that SEED's stages wrote, as one saved system."""

from __future__ import annotations

from pathlib import Path

import torch

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.papers.seed.stages.stage2_codebook import load_tokenizer
from rebus.papers.seed.tokenizer import SHARED, TRAINING_ONLY
from rebus.papers.seed.trained import pack_trained
from rebus.papers.seed.variants import VARIANTS
from rebus.train.packing import Places, gather, spread

TOKENIZER = ("seed.stage1_qformer", "seed.stage2_codebook")
PLACES: Places = {
    "tokenizer": [(stage, "tokenizer.") for stage in TOKENIZER],
    "lm": [(f"seed.{stage}", "lm.llm.") for stage in ("stage3_pretrain", "stage4_instruct", "drawing")],
    "detokenizer": [("seed.detokenizer", "detokenizer.")],
}
V1_PLACES: Places = {**PLACES, "lm": PLACES["lm"][:1]}
"""SEED v1 has none of the later stages."""
LEFT_OUT = (*SHARED, TRAINING_ONLY)
"""How the names begin of what is not the tokenizer's own, or of no use any more."""
DRAWN = ("denoiser.", "draft.", "unclip.")
"""How the names begin of what is the detokenizer's own; the codec and the codes are other parts'."""


def pack(work: Path, folder: Path, variant: str = "mini") -> SavedSystem:
    """Writes `folder` from the weights of the stages under `work`, numbers as float16. The later stage's tensors are
    laid over the earlier's; shared parts are left to the base (`rebus.mini.pack`), and what only training asks for is left out. Variants without shared parts are
    written by `pack_trained`."""
    config = VARIANTS[variant]
    if config.base is None or config.weights is None:
        return pack_trained(work, folder, variant)
    parts = gather(work, places(variant))
    tokenizer = load_tokenizer(config.tokenizer, *(work / stage / "weights.safetensors" for stage in TOKENIZER))
    parts["tokenizer"] = {k: x for k, x in tokenizer.state_dict().items() if not k.startswith(LEFT_OUT)}
    parts["detokenizer"] = {name: x for name, x in parts["detokenizer"].items() if name.startswith(DRAWN)}
    source = f"trained by runs/{config.weights.replace('-', '_')}.sh"
    system = SavedSystem(name=f"seed:{variant}", config=config_to_json(config), source=source, base=config.base)
    return save_system(folder, system, parts, dtype=torch.float16, overwrite=True)


def unpack(folder: Path, work: Path) -> list[Path]:
    """Writes the weights of the stages under `work` from what `pack` wrote. Stages 1 and 2 both get the tokenizer as it
    was in the end, the stages of the language model all of it: training the last ones again goes on from there."""
    saved = load_system(folder)
    return spread(saved, work, places(saved.name.partition(":")[2]))


def places(variant: str) -> Places:
    """Which stages of a mini train which part."""
    return V1_PLACES if variant == "v1-mini" else PLACES
