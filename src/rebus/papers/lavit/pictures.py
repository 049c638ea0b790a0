"""What LaVIT's stages read when they are trained on real pictures: batches of them, and the published vision encoder.

Dimension key: none; tensors are made by the tokenizer
"""

from __future__ import annotations

from pathlib import Path

from rebus.checkpoint import convert, read_tensors
from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.pairs import Looks, PairBatches, needed
from rebus.nn.vit import ViT
from rebus.papers.lavit.convert import vision_rules
from rebus.papers.lavit.tokenizer import LavitTokenizerConfig
from rebus.train import parallel


def published_vision(config: LavitTokenizerConfig, file: Path | None) -> ViT:
    """The vision encoder from `eva_vitg_psz14.bin`. Raises RebusError if no file was named or it does not fit."""
    vision = ViT(config.vision)
    prefix = "visual_encoder."
    ours = {prefix + name: x for name, x in vision.state_dict().items()}
    file = needed("vision", file, "the vision encoder's weights (eva_vitg_psz14.bin)")
    found = convert(read_tensors(file), vision_rules(""), ours).tensors
    vision.load_state_dict({name.removeprefix(prefix): found[name] for name in found})
    return vision


def picture_batches(data: Path, batch: int, looks: Looks, *, seed: int, keep: Keep = KEEP_ALL) -> PairBatches:
    """Batches for this process of the pictures under `data`; `batch` is over all processes."""
    world = parallel.world_size()
    return PairBatches(data, batch // world, looks, seed=seed, rank=parallel.rank(), world=world, keep=keep)
