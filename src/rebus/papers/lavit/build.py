"""A whole LaVIT from its config and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rebus.checkpoint import LazyTensors, SavedSystem, load_module, load_system, without_weights
from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel, build_causal_lm, own_names
from rebus.nn.text_tokenizer import TextTokenizer, read_tokenizer
from rebus.packages import embedded
from rebus.papers.lavit.detokenizer import LavitDetokenizer
from rebus.papers.lavit.grammar import LavitGrammar
from rebus.papers.lavit.language import (
    LanguageConfig,
    MergedLanguageConfig,
    build_language,
    share_codebook,
    take_codes,
)
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizer, MiniDetokenizerConfig
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
    base_llm: Path | None = None,
    generator: torch.Generator | None = None,
) -> System:
    """The parts asked for, on `device`; with `weights` None the variant's embedded ones, or random ones (from `generator`)
    where it has none. `base_llm` is where the base language model lies, if not where the config says.

    Raises RebusError when the weights do not fit the config, are not there, or are published ones that nobody named.
    """
    if weights is None and config.weights is not None:
        weights = _embedded(config.weights)
    saved = None if weights is None else load_system(weights)
    if saved is None and isinstance(config.language, MergedLanguageConfig):
        raise RebusError(
            "This variant's weights are not part of the library, and no folder of them was named. Turn the published "
            "files into one with `rebus convert`, and load it with `weights=`."
        )
    shared = None if saved is None else saved.shared()
    source = "lavit random" if saved is None else f"{saved.name} {saved.hash('tokenizer')}"
    number = dtype or fast_dtype(device)
    tokenizer = read_tokenizer_part(config, saved, shared, source, generator) if _needed(config, parts, saved) else None
    lm, text = _language(config, saved, "lm" in parts, base_llm, number, generator)
    if tokenizer is not None:
        share_codebook(lm.llm, tokenizer.quantizer.codebook_KC)
    detokenizer: Drawer | None = None
    if "detokenizer" in parts:
        detokenizer = _detokenizer(config, tokenizer, saved, shared, source, number, generator)
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


Drawer = LavitDetokenizer | MiniDetokenizer
Parts = dict[str, dict[str, Tensor]]
CODEBOOK = "quantizer.codebook_KC"


def _embedded(name: str) -> Path:
    try:
        return embedded(name)
    except RebusError as error:
        raise RebusError(
            f"{error} Weights that were never trained here are made by runs/{name.replace('-', '_')}.sh."
        ) from None


def _needed(config: LavitConfig, parts: Collection[str], saved: SavedSystem | None) -> bool:
    """Whether the tokenizer is. Random weights are drawn for it first, whose codebook the detokenizer takes; a language model that writes
    codes from words takes it too."""
    writes = config.language.codes is not None and "lm" in parts
    return "tokenizer" in parts or (saved is None and "detokenizer" in parts) or writes


def read_tokenizer_part(
    config: LavitConfig,
    saved: SavedSystem | None,
    shared: SavedSystem | None,
    source: str,
    generator: torch.Generator | None = None,
) -> LavitTokenizer:
    """The tokenizer with the saved weights (none: random ones); the vision encoder comes from the shared weights where
    there are such."""
    with contextlib.nullcontext() if saved is None else without_weights():
        tokenizer = LavitTokenizer(config.tokenizer, source=source, generator=generator)
    if saved is not None:
        layers = [saved.tensors("tokenizer")]
        if shared is not None:
            vision = shared.tensors("vision")
            layers.insert(0, named(vision, "vit.", "visual_encoder."))
        load_module(tokenizer, *layers, dtype=torch.float32)
    return tokenizer


def named(tensors: LazyTensors, old: str, new: str) -> LazyTensors:
    """The tensors whose names begin with `old`, under names that begin with `new`."""
    meta = {new + name[len(old) :]: x for name, x in tensors.meta.items() if name.startswith(old)}
    return LazyTensors(meta, lambda name: tensors[old + name[len(new) :]])


def _language(
    config: LavitConfig,
    saved: SavedSystem | None,
    wanted: bool,
    base: Path | None,
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
            take_codes(llm, config.language)
    else:
        llm, text = build_language(config.language, base=base, dtype=dtype, generator=generator)
    with contextlib.nullcontext() if saved is None else without_weights():
        way_in = LavitInputProjector(
            config.projector, llm.width, generator, running_mean=config.running_mean, words=config.words
        )
        lm = InterleavedLM(llm, way_in)
    if saved is not None and wanted:
        stored = saved.tensors("lm")
        if llm.rows is None:
            load_module(lm, stored, dtype=dtype)
        else:
            load_own(lm, stored)
    return lm, text


def load_own(lm: InterleavedLM, stored: LazyTensors) -> None:
    """Rows of new words, adapters and the way in, and what of the base model was trained in full. Raises RebusError when
    one of the former is missing, or something is no part of the model."""
    ours = lm.state_dict()
    own = {f"llm.{name}" for name in own_names(lm.llm)} | {name for name in ours if name.startswith("input_projector.")}
    missing, surplus = sorted(own - set(stored)), sorted(set(stored) - set(ours))
    if missing or surplus:
        raise RebusError(
            f"The language model's weights do not fit this LaVIT: {len(missing)} tensors are missing "
            f"({', '.join(missing[:2])}), {len(surplus)} are not known ({', '.join(surplus[:2])}). "
            "Load the variant that they were saved as."
        )
    base = LazyTensors({name: x for name, x in ours.items() if name not in stored}, lambda name: ours[name])
    load_module(lm, base, stored)


def _detokenizer(
    config: LavitConfig,
    tokenizer: LavitTokenizer | None,
    saved: SavedSystem | None,
    shared: SavedSystem | None,
    source: str,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> Drawer:
    if isinstance(config.detokenizer, MiniDetokenizerConfig):
        mini = MiniDetokenizer(config.detokenizer, source=source, generator=generator)
        if saved is not None:
            load_mini_drawer(mini, saved, shared)
        elif tokenizer is not None:
            mini.codebook_KE.copy_(tokenizer.quantizer.codebook_KC.detach())
        return mini
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


def load_mini_drawer(made: MiniDetokenizer, saved: SavedSystem, shared: SavedSystem | None) -> None:
    """Decoder, draft and denoiser of the saved weights with the codebook of their tokenizer; the latent codec and the norm
    behind the vision encoder come from the shared weights where there are such."""
    layers = [named(saved.tensors("tokenizer"), CODEBOOK, "codebook_KE")]
    if shared is not None:
        layers += [named(shared.tensors("vae"), "", "codec."), named(shared.tensors("vision"), "norm.", "norm.")]
    load_module(made, *layers, saved.tensors("detokenizer"), dtype=torch.float32)


def own_tensors(config: LavitConfig, tokenizer: nn.Module, lm: InterleavedLM, detokenizer: nn.Module) -> Parts:
    """The tensors of each part that are this system's own, not of the base language model nor of the shared weights, as
    `save_system` takes them."""
    shared = config.base is not None
    elsewhere = ("codebook_KE", *(("codec.", "norm.") if shared else ()))
    drawn, language = detokenizer.state_dict(), lm.state_dict()
    if isinstance(detokenizer, MiniDetokenizer):
        drawn = {name: x for name, x in drawn.items() if not name.startswith(elsewhere)}
    if isinstance(config.language, LanguageConfig) and isinstance(config.language.base, str):
        own = {f"llm.{name}" for name in own_names(lm.llm)}
        language = {name: x for name, x in language.items() if name in own or name.startswith("input_projector.")}
    seen = tokenizer.state_dict()
    return {
        "tokenizer": {name: x for name, x in seen.items() if not (shared and name.startswith("visual_encoder."))},
        "lm": language,
        "detokenizer": drawn,
    }
