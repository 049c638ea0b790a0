"""BLIP-2's first stage, from which SEED's stage 1 starts (SEED section 3.1)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rebus.checkpoint import LazyTensors, convert, read_tensors, without_weights
from rebus.errors import RebusError
from rebus.papers.seed.convert import BLIP2_RULES
from rebus.papers.seed.losses import ContrastiveHeads
from rebus.papers.seed.qformer import QFormer, TextBranch
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig


def read_blip2(file: Path, config: SeedTokenizerConfig, *, contrast_width: int = 256) -> LazyTensors:
    """BLIP-2's first stage (`blip2_pretrained.pth`) as the start of stage 1: tensors of `qformer`, `vision_norm`, `text`
    (a `TextBranch`) and `heads` (`ContrastiveHeads`). Raises RebusError listing whatever does not fit."""
    theirs = read_tensors(file)
    tables = [f"Qformer.bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position")]
    if lacking := [name for name in tables if name not in theirs]:
        raise RebusError(f"{file} is not BLIP-2's first stage: {lacking[0]} is missing. Name blip2_pretrained.pth.")
    words, positions = (theirs.meta[name].shape[0] for name in tables)
    with without_weights():
        ours = nn.ModuleDict(
            {
                "qformer": QFormer(config.qformer),
                "vision_norm": nn.LayerNorm(config.vision.width),
                "text": TextBranch(config.qformer, words, positions),
                "heads": ContrastiveHeads(config.qformer.width, contrast_width),
            }
        )
    return convert(theirs, BLIP2_RULES, ours.state_dict()).tensors
