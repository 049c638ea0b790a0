"""A whole SEED from its config and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rebus.checkpoint import SavedSystem, load_module, load_system, without_weights
from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel, own_names
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.packages import embedded
from rebus.papers.seed.detokenizer import (
    MiniDetokenizer,
    MiniDetokenizerConfig,
    SeedDetokenizerConfig,
    StatesDetokenizerConfig,
    mini_detokenizer,
)
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import MergedLanguageConfig, build_language, merged_language, share_codebook
from rebus.papers.seed.published_decoder import TextLikeConfig, TextLikeDetokenizer, UnclipConfig, UnclipDetokenizer
from rebus.papers.seed.tokenizer import SHARED, TRAINING_ONLY, SeedTokenizer
from rebus.papers.seed.variants import SeedConfig
from rebus.system import System


def build(
    config: SeedConfig,
    weights: Path | None,
    parts: Collection[str],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    *,
    base_llm: Path | None = None,
    generator: torch.Generator | None = None,
) -> System:
    """The parts asked for, on `device`; with `weights` None the variant's embedded ones, or random ones (from `generator`)
    where it has none.

    The codes' way back to an image embedding belongs to the tokenizer's weights, so the detokenizer loads these too.
    Raises RebusError when the weights do not fit the config.
    """
    if weights is None and config.weights is not None:
        weights = _embedded(config.weights)
    saved = None if weights is None else load_system(weights)
    source = "seed random" if saved is None else f"{saved.name} {saved.hash('tokenizer')}"
    shared = None if saved is None else saved.shared()
    with contextlib.nullcontext() if saved is None else without_weights():
        tokenizer = SeedTokenizer(config.tokenizer, source=source, generator=generator)
    if saved is not None:
        if not any(name.startswith(TRAINING_ONLY) for name in saved.tensors("tokenizer")):
            tokenizer.embedding_decoder = None
        load_module(tokenizer, *tokenizer_layers(saved, shared), dtype=torch.float32)
    number = dtype or fast_dtype(device)
    lm, text = _language(config, saved, "lm" in parts, base=base_llm, dtype=number, generator=generator)
    share_codebook(lm, tokenizer.quantizer.codebook_KC)
    detokenizer = _detokenizer(config, tokenizer, saved, shared, number) if "detokenizer" in parts else None
    return System(
        grammar=SeedGrammar(text, config.grammar, source),
        lm=lm.eval() if lm.llm.device.type == "meta" else lm.to(device).eval(),
        tokenizer=tokenizer.to(device).eval() if "tokenizer" in parts else None,
        detokenizer=None if detokenizer is None else detokenizer.to(device).eval(),
    )


def official(config: SeedConfig) -> SeedConfig:
    """The config with the published inference code's choices where they differ from ours: every image begins as one and
    the same noise."""
    if isinstance(config.detokenizer, MiniDetokenizerConfig):
        return config
    return replace(config, detokenizer=replace(config.detokenizer, latents="fixed"))


START = ("norm.", "patch_down.", "component_head.", "contrast_head.")
"""How the tensors of the shared vision encoder begin from which codes start."""
Drawer = MiniDetokenizer | UnclipDetokenizer | TextLikeDetokenizer


def _embedded(name: str) -> Path:
    try:
        return embedded(name)
    except RebusError as error:
        raise RebusError(
            f"{error} Weights that were never trained here are made by runs/{name.replace('-', '_')}.sh."
        ) from None


def _language(
    config: SeedConfig,
    saved: SavedSystem | None,
    wanted: bool,
    *,
    base: Path | None,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> tuple[InterleavedLM, TextTokenizer]:
    """The language model and its text tokenizer; one that is not `wanted` may stay without weights."""
    if not isinstance(config.language, MergedLanguageConfig):
        lm, text = build_language(config.language, base=base, dtype=dtype, generator=generator)
        if saved is not None and wanted:
            load_language(lm.llm, saved)
        return lm, text
    if saved is None:
        raise RebusError(
            "This variant's weights are not part of the library, and no folder of them was named. Turn the published "
            "files into one with `rebus convert`, and load it with `weights=`."
        )
    lm, text = merged_language(config.language, saved.folder)
    if wanted:
        load_module(lm.llm, saved.tensors("lm"), dtype=dtype)
    return lm, text


def _detokenizer(
    config: SeedConfig,
    tokenizer: SeedTokenizer,
    saved: SavedSystem | None,
    shared: SavedSystem | None,
    dtype: torch.dtype,
) -> Drawer:
    match config.detokenizer:
        case SeedDetokenizerConfig() | StatesDetokenizerConfig():
            mini = mini_detokenizer(config.detokenizer, tokenizer)
            if saved is not None:
                load_detokenizer(mini, saved, shared)
            return mini
        case UnclipConfig() | TextLikeConfig():
            with contextlib.nullcontext() if saved is None else without_weights():
                made: UnclipDetokenizer | TextLikeDetokenizer
                if isinstance(config.detokenizer, UnclipConfig):
                    made = UnclipDetokenizer(config.detokenizer, tokenizer)
                else:
                    made = TextLikeDetokenizer(config.detokenizer, tokenizer)
            if saved is not None:
                codes = {f"codes.{name}": tensor for name, tensor in tokenizer.state_dict().items()}
                load_module(made, codes, saved.tensors("detokenizer"), dtype=torch.float32)
            made.diffusion.to(dtype)
            return made


def tokenizer_layers(saved: SavedSystem, shared: SavedSystem | None) -> list[Mapping[str, Tensor]]:
    """The tokenizer's tensors; the vision encoder comes from the shared weights where there are such, and what codes start
    from, where they start from its patches."""
    own = saved.tensors("tokenizer")
    if shared is None:
        return [own]
    vision = shared.tensors("vision")
    seeing = {f"visual_encoder.{k[4:]}": vision[k] for k in vision if k.startswith("vit.")}
    sizes = saved.config["tokenizer"]
    if not sizes.get("start_per_patch"):
        return [seeing, own]
    read = START if sizes.get("start_contrast") else START[:-1]
    starting = {f"code_start.{k}": vision[k] for k in vision if k.startswith(read)}
    return [seeing, starting, own]


def load_language(llm: TextModel, saved: SavedSystem) -> None:
    """Adapters and rows of new words, and what of the base model was trained in full. Raises RebusError when one of the
    former is missing, or something is no part of the model."""
    own = saved.tensors("lm")
    missing, surplus = sorted(set(own_names(llm)) - set(own)), sorted(set(own) - set(llm.state_dict()))
    if missing or surplus:
        raise RebusError(
            f"The language model's weights in {saved.folder} do not fit {saved.name}: {len(missing)} tensors are missing "
            f"({', '.join(missing[:2])}), {len(surplus)} are not known ({', '.join(surplus[:2])}). "
            "Load the variant that they were saved as."
        )
    load_module(llm, llm.state_dict(), own)


def load_detokenizer(detokenizer: MiniDetokenizer, saved: SavedSystem, shared: SavedSystem | None) -> None:
    """Denoiser and what is told it; the latent codec comes from the shared weights where there are such."""
    own = saved.tensors("detokenizer")
    codec = own if shared is None else {f"codec.{k}": v for k, v in shared.tensors("vae").items()}
    parts = nn.ModuleDict({name: getattr(detokenizer, name) for name in detokenizer.OWN})
    load_module(parts, codec, own, dtype=torch.float32)


def own_tensors(
    config: SeedConfig, tokenizer: SeedTokenizer, llm: TextModel, detokenizer: Drawer
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that are this system's own, not of the base language model nor of the shared weights."""
    shared = config.base is not None
    language = llm.state_dict()
    whole = isinstance(config.language, MergedLanguageConfig)
    if isinstance(detokenizer, MiniDetokenizer):
        drawing = [f"{name}." for name in detokenizer.OWN if not (shared and name == "codec")]
    else:
        drawing = ["diffusion.", "unclip.", "prompt_1SC"]
    return {
        "tokenizer": {k: v for k, v in tokenizer.state_dict().items() if not (shared and k.startswith(SHARED))},
        "lm": language if whole else {name: language[name] for name in own_names(llm)},
        "detokenizer": {k: v for k, v in detokenizer.state_dict().items() if k.startswith(tuple(drawing))},
    }
