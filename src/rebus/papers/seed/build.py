"""A whole SEED from its config and weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rebus.checkpoint import SavedSystem, load_module, load_system
from rebus.errors import RebusError
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel, own_names
from rebus.packages import embedded
from rebus.papers.seed.detokenizer import SeedDetokenizer
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import build_language
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import SeedConfig
from rebus.system import System

DRAWING = ("codec", "denoiser", "draft", "unclip")
"""The parts of the detokenizer that are its own; the codes' way to an image embedding is the tokenizer's."""


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
        weights = embedded(config.weights)
    saved = None if weights is None else load_system(weights)
    source = "seed random" if saved is None else f"{saved.name} {saved.hash('tokenizer')}"
    shared = None if saved is None or saved.base is None else load_system(saved.folder.parent / saved.base)
    tokenizer = SeedTokenizer(config.tokenizer, source=source, generator=generator)
    if saved is not None:
        load_module(tokenizer, *tokenizer_layers(saved, shared), dtype=torch.float32)
    lm, text = build_language(config.language, base=base_llm, dtype=dtype or fast_dtype(device), generator=generator)
    if saved is not None and "lm" in parts:
        load_language(lm.llm, saved)
    detokenizer = None
    if "detokenizer" in parts:
        detokenizer = SeedDetokenizer(config.detokenizer, tokenizer)
        if saved is not None:
            load_detokenizer(detokenizer, saved, shared)
    return System(
        grammar=SeedGrammar(text, config.grammar, source),
        lm=lm.to(device).eval(),
        tokenizer=tokenizer.to(device).eval() if "tokenizer" in parts else None,
        detokenizer=None if detokenizer is None else detokenizer.to(device).eval(),
    )


def tokenizer_layers(saved: SavedSystem, shared: SavedSystem | None) -> list[Mapping[str, Tensor]]:
    """The tokenizer's tensors; the vision encoder comes from the shared weights where there are such."""
    own = saved.tensors("tokenizer")
    if shared is None:
        return [own]
    vision = shared.tensors("vision")
    return [{f"visual_encoder.{k[4:]}": vision[k] for k in vision if k.startswith("vit.")}, own]


def load_language(llm: TextModel, saved: SavedSystem) -> None:
    """Adapters and rows of new words. Raises RebusError unless exactly these are there."""
    own = saved.tensors("lm")
    wanted = set(own_names(llm))
    if set(own) != wanted:
        missing, surplus = sorted(wanted - set(own)), sorted(set(own) - wanted)
        raise RebusError(
            f"The language model's weights in {saved.folder} do not fit {saved.name}: {len(missing)} tensors are missing "
            f"({', '.join(missing[:2])}), {len(surplus)} are not known ({', '.join(surplus[:2])}). "
            "Load the variant that they were saved as."
        )
    load_module(llm, llm.state_dict(), own)


def load_detokenizer(detokenizer: SeedDetokenizer, saved: SavedSystem, shared: SavedSystem | None) -> None:
    """Denoiser and draft; the latent codec comes from the shared weights where there are such."""
    own = saved.tensors("detokenizer")
    codec = own if shared is None else {f"codec.{k}": v for k, v in shared.tensors("vae").items()}
    parts = nn.ModuleDict({name: getattr(detokenizer, name) for name in DRAWING})
    load_module(parts, codec, own, dtype=torch.float32)


def own_tensors(
    config: SeedConfig, tokenizer: SeedTokenizer, llm: TextModel, detokenizer: SeedDetokenizer
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that are this system's own, not of the base language model nor of the shared weights."""
    shared = config.base is not None
    language = llm.state_dict()
    drawing = nn.ModuleDict({n: getattr(detokenizer, n) for n in DRAWING if not (shared and n == "codec")})
    seeing = {k: v for k, v in tokenizer.state_dict().items() if not (shared and k.startswith("visual_encoder."))}
    return {
        "tokenizer": seeing,
        "lm": {name: language[name] for name in own_names(llm)},
        "detokenizer": drawing.state_dict(),
    }
