"""What LaVIT's tokenizer says of every picture of the mini family's bank, computed once.

Dimension key: I images · N patches · K codes of the codebook
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rebus.mini.frozen import Frozen, fingerprint, take
from rebus.papers.lavit.reconstruction import load_tokenizer
from rebus.papers.lavit.tokenizer import LavitTokenizer, LavitTokenizerConfig

STAGES = ("lavit.stage1a_selector", "lavit.stage1b_codebook")
NONE = -1
"""Stands behind the codes of an image that has fewer than it has patches."""


def stage_files(work: Path) -> list[Path]:
    """The weights of both phases of stage 1."""
    return [work / name / "weights.safetensors" for name in STAGES]


def bank_tokenizer(config: LavitTokenizerConfig, data: Frozen) -> LavitTokenizer:
    """The tokenizer that stage 1 left beside the bank, frozen."""
    return load_tokenizer(config, data.vision.vit, *stage_files(data.work)).requires_grad_(False)


def bank_codes(data: Frozen, split: str, tokenizer: LavitTokenizer) -> np.ndarray:
    """The codes of every picture, int64 [I, N], −1 behind the last."""

    def run(i: np.ndarray) -> Tensor:
        x_INC = take(data.array("tokens", split), i)[:, 1:]
        keep_IN = tokenizer.keep(x_INC)
        ids = tokenizer.ids(x_INC, keep_IN).split(keep_IN.sum(1).tolist())
        rows_IN = torch.full(keep_IN.shape, NONE)
        for row_N, ids_N in zip(rows_IN, ids, strict=True):
            row_N[: len(ids_N)] = ids_N
        return rows_IN

    odds = tokenizer.config.keep_odds
    made_of = fingerprint(tokenizer, data.vision_print, *([f"odds {odds}"] if odds else []))
    return data.derive(f"lavit_codes_{tokenizer.selection}", split, run, of=made_of)


def unpadded(rows_IN: np.ndarray) -> list[Tensor]:
    """The ids_N of each image."""
    return [torch.from_numpy(row[row != NONE].copy()) for row in np.asarray(rows_IN)]
