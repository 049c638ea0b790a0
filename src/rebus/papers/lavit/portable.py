"""A LaVIT that needs nothing beside its own folder, and the sizes of one that nobody has downloaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rebus.checkpoint import without_weights
from rebus.lm import InterleavedLM
from rebus.mini.outline import outline_llm
from rebus.nn.whole import whole_config, whole_tensors
from rebus.papers.lavit.build import own_tensors
from rebus.papers.lavit.detokenizer import LavitDetokenizer
from rebus.papers.lavit.language import MergedLanguageConfig, take_codes
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizer, MiniDetokenizerConfig
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import LavitConfig
from rebus.system import Portable, Source, System, text_files

LICENCE = "LaVIT's community licence and LLaMA 2's; no open licence"


def portable(system: System) -> Portable:
    """The config and tensors of a saved system that stands alone: shared parts written in, the language model whole."""
    config, lm = system.config, system.lm
    text = text_files(system)
    if text:
        language = MergedLanguageConfig(whole_config(lm.llm), config.language.codes)
    else:  # it reads bytes; its random base is written out
        language = replace(config.language, lora_rank=0)
    config = replace(config, language=language, weights=None, base=None)
    seen: Any = system.tokenizer
    drawer: Any = system.detokenizer or nn.Identity()
    parts: dict[str, Mapping[str, Tensor]] = {**own_tensors(config, seen, lm, drawer)}
    if text:
        projector = {name: x for name, x in lm.state_dict().items() if not name.startswith("llm.")}
        parts["lm"] = projector | {f"llm.{name}": x for name, x in whole_tensors(lm.llm).items()}
    return Portable(config, parts, {"text": text} if text else {})


def outline(config: LavitConfig) -> tuple[nn.Module, InterleavedLM, nn.Module]:
    """Tokenizer, language model and detokenizer without weights, on the meta device."""
    with without_weights():
        if isinstance(config.language, MergedLanguageConfig):
            llm = outline_llm(config.language.model)
        else:
            llm = outline_llm(config.language.base, new_words=config.language.new_words)
        take_codes(llm, config.language)
        detokenizer: nn.Module
        if isinstance(config.detokenizer, MiniDetokenizerConfig):
            detokenizer = MiniDetokenizer(config.detokenizer, source="")
        else:
            detokenizer = LavitDetokenizer(config.detokenizer, source="")
        tokenizer = LavitTokenizer(config.tokenizer, source="")
        way_in = LavitInputProjector(config.projector, llm.width, words=config.words)
        return tokenizer, InterleavedLM(llm, way_in), detokenizer


SOURCES: dict[str, tuple[Source, ...]] = {
    "v2": (Source("all parts, image decoders among them", "rain1011/LaVIT-7B-v2", LICENCE, 26_000_000_000),),
    "v1": (Source("all parts, image decoders among them", "rain1011/LaVIT-7B-v1", LICENCE, 22_000_000_000),),
}
"""What has to be fetched for the variants whose weights are not in the repository, and under which licence; sizes are the
publishers', rounded."""
