"""A SEED-X that needs nothing beside its own folder, and the sizes of one that nobody has downloaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rebus.checkpoint import without_weights
from rebus.lm import InterleavedLM
from rebus.mini.outline import outline_llm
from rebus.nn.whole import whole_config, whole_tensors
from rebus.papers.seed_x.build import assemble, own_tensors
from rebus.papers.seed_x.detokenizer import SeedXDetokenizer, SeedXDetokenizerConfig
from rebus.papers.seed_x.language import MergedLanguageConfig
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import SeedXConfig
from rebus.system import Portable, Source, System, text_files


def portable(system: System) -> Portable:
    """The config and tensors of a saved system that stands alone: shared parts written in, the language model whole."""
    config, lm = system.config, system.lm
    text = text_files(system)
    if text:
        language = MergedLanguageConfig(whole_config(lm.llm))
    else:  # it reads bytes; its random base is written out
        language = replace(config.language, lora=None)
    config = replace(config, language=language, weights=None, base=None)
    seen: Any = system.tokenizer
    drawer: Any = system.detokenizer or nn.Identity()
    parts: dict[str, Mapping[str, Tensor]] = {**own_tensors(config, seen, lm, drawer)}
    if text:
        projectors = {name: x for name, x in lm.state_dict().items() if not name.startswith("llm.")}
        parts["lm"] = projectors | {f"llm.{name}": x for name, x in whole_tensors(lm.llm).items()}
    else:
        parts["lm"] = lm.state_dict()
    return Portable(config, parts, {"text": text} if text else {})


def outline(config: SeedXConfig) -> tuple[nn.Module, InterleavedLM, nn.Module]:
    """Tokenizer, language model and detokenizer without weights, on the meta device."""
    with without_weights():
        if isinstance(config.language, MergedLanguageConfig):
            llm = outline_llm(config.language.model)
        else:
            llm = outline_llm(config.language.base, new_words=config.language.new_words)
        detokenizer: nn.Module
        if isinstance(config.detokenizer, SeedXDetokenizerConfig):
            detokenizer = SeedXDetokenizer(config.detokenizer, source="")
        else:
            detokenizer = SdxlDetokenizer(config.detokenizer, source="")
        return SeedXTokenizer(config.tokenizer, source=""), assemble(config, llm), detokenizer


RELEASE = "AILab-CVC/SEED-X-17B"
OWN = "the authors' own licence, on the page; LLaMA 2's for the language model"
VISION = Source("vision encoder, from Qwen-VL-Chat", "Qwen/Qwen-VL-Chat", "Tongyi Qianwen's own licence")
SDXL = Source("VAE and sampler of the image decoder", "stabilityai/stable-diffusion-xl-base-1.0", "OpenRAIL++-M")
DECODER = 10_500_000_000
"""Bytes of the second stage's image decoder, in float32; the first stage's is of nearly the same number of parameters."""


def _release(folder: str, stage: str, size: int | None) -> tuple[Source, ...]:
    """What one of the three releases consists of."""
    return (
        Source(f"language model, float32 ({folder}/llm)", RELEASE, OWN, 52_000_000_000),
        Source(f"resamplers ({folder}/agent)", RELEASE, OWN, 861_000_000),
        Source(f"image decoder (seed_detokenizer/{stage})", RELEASE, OWN, size),
        VISION,
        SDXL,
    )


SOURCES: dict[str, tuple[Source, ...]] = {
    "17b-i": _release("seed_x_i", "first_stage", None),
    "17b": _release("seed_x", "first_stage", None),
    "17b-edit": _release("seed_x_edit", "second_stage", DECODER),
}
"""What has to be fetched for the variants whose weights are not in the repository, and under which licence; sizes where
the publishers' own listing gave them, rounded."""
