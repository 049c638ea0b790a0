"""Language models without weights, for counting: the sizes of base models that need not be there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebus.errors import RebusError
from rebus.mini.llm import BASE_LLM, SPECIAL_BYTES
from rebus.nn.text_model import TextModel, build_causal_lm

BASES: dict[str, dict[str, Any]] = {
    BASE_LLM: {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "facebook/opt-2.7b": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 2560,
        "word_embed_proj_dim": 2560,
        "ffn_dim": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}
"""The sizes of base models that variants name."""


def outline_llm(base: str | Mapping[str, Any], new_words: int = 0) -> TextModel:
    """The language model of this name or config with `new_words` further words and without adapters, which loading folds in. Call it where
    modules are built without weights. Raises RebusError for a base model whose sizes are not known here."""
    if isinstance(base, Mapping):
        config = {"vocab_size": 256 + len(SPECIAL_BYTES), **base}
    elif base in BASES:
        config = BASES[base]
    else:
        raise RebusError(
            f"The sizes of {base} are not known here; those of {', '.join(BASES)} are. Name one of the variants that "
            "`rebus list` shows."
        )
    model = TextModel(build_causal_lm(config))
    return model.extend(new_words) if new_words else model
