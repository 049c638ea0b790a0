"""The weights that SEED-X's stages wrote, as one saved system and the adapters beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.errors import RebusError
from rebus.papers.seed_x.decoder_training import KEEPING, SECOND
from rebus.papers.seed_x.speciality import beside, save_speciality
from rebus.papers.seed_x.stages import instruct, pretrain
from rebus.papers.seed_x.variants import VARIANTS
from rebus.train.checkpointing import read_json
from rebus.train.packing import Places, gather, spread

PLACES: Places = {
    "lm": [(pretrain.NAME, "lm.")],
    "detokenizer": [(SECOND, "detokenizer."), (KEEPING, "detokenizer.")],
}
SHARED = "codec."
"""How the names begin of what is the shared parts'."""


def pack(work: Path, folder: Path, variant: str = "mini") -> SavedSystem:
    """Writes `folder` from the weights of pre-training and of the image decoder's second stage under `work`, numbers as
    float16; then the adapters that `seed_x.instruct` left there, each beside it (`seed_x-mini-edit` beside `seed_x-mini`).
    The tokenizer is the shared vision encoder, which is left to the base (`rebus.mini.pack`).

    Raises RebusError for a variant that is not laid over shared parts, and for an adapter of another base.
    """
    config = VARIANTS[variant]
    if config.base is None or config.weights is None:
        raise RebusError(
            f"seed_x:{variant} is not made of mini stages. Packed is seed_x:mini; published weights are converted."
        )
    parts = gather(work, PLACES)
    parts["detokenizer"] = {k: x for k, x in parts["detokenizer"].items() if not k.startswith(SHARED)}
    source = f"trained by runs/{config.weights.replace('-', '_')}.sh"
    about = SavedSystem(f"seed_x:{variant}", config_to_json(config), source=source, base=config.base)
    saved = save_system(folder, about, parts, dtype=torch.float16, overwrite=True)
    for stage in sorted(work.glob(f"{instruct.NAME}.*")):
        if (stage / "weights.safetensors").exists():
            pack_adapter(stage, folder)
    return saved


def pack_adapter(stage: Path, base: Path, folder: Path | None = None) -> SavedSystem:
    """Writes the adapter that a run of `seed_x.instruct` left in `stage`, numbers as float16, beside the weights of its
    base or into `folder`. Raises RebusError when it was trained on other weights."""
    speciality = instruct.speciality_of(stage, read_json(stage / "config.json"))
    held = load_system(base)
    if (held.name, held.hash("lm")) != (speciality.base, speciality.base_hash):
        raise RebusError(
            f"The adapter in {stage} was trained on {speciality.base} with the weights {speciality.base_hash}, but {base} "
            f"holds {held.name} with {held.hash('lm')}. Train it again on these, or move its folder away."
        )
    found: Mapping[str, Tensor] = load_file(stage / "weights.safetensors")
    tensors = {name.removeprefix("lm."): x for name, x in found.items() if name.startswith("lm.")}
    place = folder or beside(base, speciality.name)
    return save_speciality(place, speciality, tensors, dtype=torch.float16)


def unpack(folder: Path, work: Path) -> list[Path]:
    """Writes the weights of the stages under `work` from what `pack` wrote. The image decoder's first stage is none of them:
    the second holds all of it. Nor are the adapters, which are tuned on the packed base."""
    return spread(load_system(folder), work, PLACES)
