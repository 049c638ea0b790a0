"""LaVIT's language model: a causal LM whose vocabulary has grown by two marks and the codes, and an input projector
(section 3.2). While it is trained the new words have rows of their own (`LanguageConfig`); as released they are part of
its one table (`MergedLanguageConfig`).

Dimension key: V new words, or codes · C code width · D language-model width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.mini.llm import read_base
from rebus.nn.lora import LLAMA_PROJECTIONS, add_lora
from rebus.nn.new_rows import MarkRows, RowInit
from rebus.nn.patch_codes import PatchCodes, PatchCodesConfig
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer

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


@dataclass(frozen=True)
class LanguageConfig:
    """Which language model, and what of it is trained beside the rows of new words; the defaults are the paper's."""

    base: str | Mapping[str, Any] = "huggyllama/llama-7b"
    """Folder or hub id of a Hugging Face model; `SmolLM2-135M-Instruct` is fetched from its package; a mapping is the
    config of a model with random weights that reads bytes."""
    new_words: int = 16386
    """Marks and codes, the words behind the base's own."""
    rows: RowInit = field(default_factory=RowInit)
    """How the rows of new words begin; as ordinary word vectors do."""
    lora_rank: int = 0
    """Rank of the adapters; 0 has none: LaVIT trains the whole model."""
    lora_alpha: float = 32
    """Scale of the adapters, divided by the rank."""
    lora_dropout: float = 0.0
    """Dropout of what goes into the adapters while training."""
    lora_targets: tuple[str, ...] = LLAMA_PROJECTIONS
    """Projections that have an adapter."""
    codes: PatchCodesConfig | None = None
    """How images are written from words that are said before them. (The paper: they are not, codes are words of the vocabulary.)"""


@dataclass(frozen=True)
class MergedLanguageConfig:
    """A language model whose own table holds marks and codes, as LaVIT is released."""

    model: Mapping[str, Any] = field(default_factory=lambda: dict(LLAMA_7B))
    """Its `config.json`; the default is LaVIT's on Llama-2-7B, conversion takes the release's own."""
    codes: PatchCodesConfig | None = None
    """As `LanguageConfig.codes`; the releases have none."""


def build_language(
    config: LanguageConfig,
    *,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TextModel, TextTokenizer]:
    """The language model, frozen but for the rows of new words and the adapters, which are fresh, and its text tokenizer.
    `base` overrides where the base model lies. Raises RebusError when it is not there and cannot be fetched."""
    llm, text = read_base(config.base, folder=base, dtype=dtype, progress=progress)
    llm.extend(config.new_words, input_init=config.rows, generator=generator)
    take_codes(llm, config)
    if config.lora_rank:
        add_lora(
            llm,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_targets,
            generator=generator,
        )
    return llm, text


def take_codes(llm: TextModel, config: LanguageConfig | MergedLanguageConfig) -> None:
    """How the model is to write codes; rows that no longer say which one comes next are left out."""
    if config.codes is None:
        return
    llm.tell_codes(PatchCodes(config.codes, llm.width))
    if llm.rows is not None:
        table_VD = llm.rows.output.table()
        marks = len(table_VD) - config.codes.codes
        llm.rows.output = MarkRows(table_VD[:marks].detach().clone(), 0, config.codes.codes)


def patch_codes(llm: TextModel) -> PatchCodes | None:
    """What the model knows of codes of kept patches; none: nothing."""
    return llm.codes if isinstance(llm.codes, PatchCodes) else None


@torch.no_grad()
def share_codebook(llm: TextModel, codebook_VC: Tensor) -> None:
    """Gives what writes codes the tokenizer's, as unit vectors."""
    if (codes := patch_codes(llm)) is not None:
        codes.codebook_VC = F.normalize(codebook_VC.detach().to(llm.device, torch.float32), dim=-1)
