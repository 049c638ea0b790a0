"""LaVIT's language model: a causal LM whose vocabulary has grown by two marks and the codes, and an input projector
(section 3.2). While it is trained the new words have rows of their own (`LanguageConfig`); as released they are part of
its one table (`MergedLanguageConfig`).

Dimension key: V new words · D language-model width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rebus.nn.new_rows import RowInit, new_rows
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import ByteTokenizer

LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 48386,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
SPECIAL_BYTES = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class LanguageConfig:
    """A language model that reads bytes, with random weights, and rows for new words."""

    base: Mapping[str, Any]
    """Its `config.json`, without the size of its vocabulary."""
    new_words: int = 16386
    """Marks and codes, the words behind the base's own."""
    rows: RowInit = field(default_factory=RowInit)
    """How the rows of new words begin; as ordinary word vectors do."""


@dataclass(frozen=True)
class MergedLanguageConfig:
    """A language model whose own table holds marks and codes, as LaVIT is released."""

    model: Mapping[str, Any] = field(default_factory=lambda: dict(LLAMA_7B))
    """Its `config.json`; the default is LaVIT's on Llama-2-7B, conversion takes the release's own."""


def byte_language(
    config: LanguageConfig, dtype: torch.dtype, generator: torch.Generator | None
) -> tuple[TextModel, ByteTokenizer]:
    """The language model, frozen but for the rows of new words, and its text tokenizer."""
    text = ByteTokenizer(SPECIAL_BYTES)
    # a base that is not on any disk must come out the same each time, or weights laid over it would mean nothing
    fixed = torch.Generator().manual_seed(0)
    model = build_causal_lm({**config.base, "vocab_size": text.words}, dtype=dtype, generator=fixed).requires_grad_(
        False
    )
    tables = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return TextModel(model, new_rows(*tables, config.new_words, input_init=config.rows, generator=generator)), text
