"""A whole LaVIT from its config and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rebus.checkpoint import SavedSystem, load_module, load_system, without_weights
from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel, build_causal_lm
from rebus.nn.text_tokenizer import TextTokenizer, read_tokenizer
from rebus.packages import embedded
from rebus.papers.lavit.detokenizer import LavitDetokenizer
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import MergedLanguageConfig, byte_language
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import LavitConfig
from rebus.system import System


def build(
    config: LavitConfig,
    weights: Path | None,
    parts: Collection[str],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    generator: torch.Generator | None = None,
) -> System:
    """The parts asked for, on `device`; with `weights` None the variant's embedded ones, or random ones (from `generator`)
    where it has none. Raises RebusError when the weights do not fit the config, or are published ones that nobody named.
    """
    if weights is None and config.weights is not None:
        weights = embedded(config.weights)
    saved = None if weights is None else load_system(weights)
    if saved is None and isinstance(config.language, MergedLanguageConfig):
        raise RebusError(
            "This variant's weights are not part of the library, and no folder of them was named. Turn the published "
            "files into one with `rebus convert`, and load it with `weights=`."
        )
    source = "lavit random" if saved is None else f"{saved.name} {saved.hash('tokenizer')}"
    number = dtype or fast_dtype(device)
    tokenizer = _tokenizer(config, saved, source, generator) if _needed("tokenizer", parts, saved) else None
    lm, text = _language(config, saved, "lm" in parts, number, generator)
    detokenizer = None
    if "detokenizer" in parts:
        detokenizer = _detokenizer(config, tokenizer, saved, source, number, generator)
    return System(
        grammar=LavitGrammar(text, config.grammar, source),
        lm=lm.eval() if lm.llm.device.type == "meta" else lm.to(device).eval(),
        tokenizer=tokenizer.to(device).eval() if tokenizer is not None and "tokenizer" in parts else None,
        detokenizer=None if detokenizer is None else detokenizer.to(device).eval(),
    )


def official(config: LavitConfig) -> LavitConfig:
    """The config with the published inference code's choices where they differ from ours: patches are drawn at random,
    and the images of a wish stand without marks."""
    return replace(
        config,
        tokenizer=replace(config.tokenizer, selection="sample", budget=None),
        grammar=replace(config.grammar, wish_marks=False),
    )


def _needed(part: str, parts: Collection[str], saved: SavedSystem | None) -> bool:
    """Random weights are drawn for the tokenizer first, whose codebook the detokenizer takes."""
    return part in parts or (saved is None and "detokenizer" in parts)


def _tokenizer(
    config: LavitConfig, saved: SavedSystem | None, source: str, generator: torch.Generator | None
) -> LavitTokenizer:
    with contextlib.nullcontext() if saved is None else without_weights():
        tokenizer = LavitTokenizer(config.tokenizer, source=source, generator=generator)
    if saved is not None:
        load_module(tokenizer, saved.tensors("tokenizer"), dtype=torch.float32)
    return tokenizer


def _language(
    config: LavitConfig,
    saved: SavedSystem | None,
    wanted: bool,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> tuple[InterleavedLM, TextTokenizer]:
    """The language model with its input projector, and its text tokenizer; without weights where it is not `wanted`."""
    text: TextTokenizer
    if isinstance(config.language, MergedLanguageConfig):
        assert saved is not None
        text = read_tokenizer(saved.folder)
        with without_weights():
            llm = TextModel(build_causal_lm(dict(config.language.model)).requires_grad_(False))
    else:
        llm, text = byte_language(config.language, dtype, generator)
    with contextlib.nullcontext() if saved is None else without_weights():
        lm = InterleavedLM(llm, LavitInputProjector(config.projector, llm.width, generator))
    if saved is not None and wanted:
        stored = saved.tensors("lm")
        load_module(lm, stored, dtype=dtype) if llm.rows is None else load_module(lm, stored)
    return lm, text


def _detokenizer(
    config: LavitConfig,
    tokenizer: LavitTokenizer | None,
    saved: SavedSystem | None,
    source: str,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> LavitDetokenizer:
    with contextlib.nullcontext() if saved is None else without_weights():
        made = LavitDetokenizer(config.detokenizer, source=source, generator=generator)
    if saved is not None:
        load_module(made, saved.tensors("detokenizer"), dtype=torch.float32)
    elif tokenizer is not None:
        made.codebook_KE.copy_(tokenizer.quantizer.codebook_KC.detach())
    made.diffusion.to(dtype)
    if dtype == torch.float16 and made.diffusion.vae.config.force_upcast:
        made.diffusion.vae.float()  # SDXL's overflows in half precision
    return made


def own_tensors(tokenizer: nn.Module, lm: nn.Module, detokenizer: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, as `save_system` takes them."""
    return {
        "tokenizer": tokenizer.state_dict(),
        "lm": lm.state_dict(),
        "detokenizer": detokenizer.state_dict(),
    }
