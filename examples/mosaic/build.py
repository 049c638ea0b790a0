"""A whole Mosaic from its config and weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from examples.mosaic.detokenizer import MosaicDetokenizer
from examples.mosaic.grammar import MosaicGrammar
from examples.mosaic.tokenizer import MosaicTokenizer

from rebus.checkpoint import load_module, load_system
from rebus.lm import InterleavedLM
from rebus.mini.llm import BASE_LLM, read_base
from rebus.system import System

SOURCE = "mosaic"
"""The tokenizer has no weights, so its name alone says which codes are its own."""


@dataclass(frozen=True)
class MosaicConfig:
    """A whole Mosaic."""

    base: str | Mapping[str, Any]
    """Base language model, as `read_base` takes it."""
    grid: int = 4
    """Cells of a side."""
    levels: int = 4
    """Steps of each colour channel; the palette has levels³ colours."""


VARIANTS = {
    "small": MosaicConfig(BASE_LLM),
    "tiny": MosaicConfig(
        {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        grid=3,
    ),
}


def build(
    config: MosaicConfig,
    weights: Path | None,
    parts: Collection[str],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    generator: torch.Generator | None = None,
) -> System:
    """The parts asked for, on `device`; with `weights` None the rows of colours are random."""
    codes, cells = config.levels**3, config.grid**2
    saved = None if weights is None else load_system(weights)
    tokenizer = MosaicTokenizer(config.grid, config.levels, SOURCE)
    llm, text = read_base(config.base, dtype=dtype)
    llm.extend(codes + 2, generator=generator)
    lm = InterleavedLM(llm)
    if saved is not None and "lm" in parts:
        load_module(lm, lm.state_dict(), saved.tensors("lm"))
    return System(
        grammar=MosaicGrammar(text, codes, cells, SOURCE),
        lm=lm.to(device).eval(),
        tokenizer=tokenizer.to(device) if "tokenizer" in parts else None,
        detokenizer=MosaicDetokenizer(tokenizer).to(device) if "detokenizer" in parts else None,
    )
