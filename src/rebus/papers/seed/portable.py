"""A SEED that needs nothing beside its own folder, and the sizes of one that nobody has downloaded yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from rebus.checkpoint import without_weights
from rebus.lm import InterleavedLM
from rebus.mini.outline import outline_llm
from rebus.nn.new_rows import MarkRows
from rebus.nn.whole import whole_config, whole_tensors
from rebus.papers.seed.build import own_tensors
from rebus.papers.seed.detokenizer import MiniDetokenizerConfig, mini_detokenizer
from rebus.papers.seed.language import MergedLanguageConfig, take_codes
from rebus.papers.seed.published_decoder import TextLikeDetokenizer, UnclipConfig, UnclipDetokenizer
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import SeedConfig
from rebus.system import Portable, Source, System, text_files

LLAMA2 = "LLaMA 2's licence, as the authors' page says; no open licence"
UNCLIP = Source("image decoder, in the layout of diffusers", "stabilityai/stable-diffusion-2-1-unclip", "OpenRAIL++-M")
EVA = Source("vision encoder, eva_vit_g.pth", "BLIP-2's release (LAVIS)", "not stated here: see its page")


def portable(system: System) -> Portable:
    """The config and tensors of a saved system that stands alone: shared parts written in, the language model whole."""
    config, llm = system.config, system.lm.llm
    text = text_files(system)
    if text:
        language = MergedLanguageConfig(whole_config(llm), llm.summed, config.language.codes)
    else:  # it reads bytes; its random base is written out
        language = replace(config.language, lora_rank=0)
    config = replace(config, language=language, weights=None, base=None)
    drawer: Any = system.detokenizer or nn.Identity()
    parts: dict[str, Mapping[str, Tensor]] = {**own_tensors(config, _codes(system), llm, drawer)}
    parts["lm"] = whole_tensors(llm) if text else llm.state_dict()
    return Portable(config, parts, {"text": text} if text else {})


def _codes(system: System) -> SeedTokenizer:
    assert isinstance(system.tokenizer, SeedTokenizer)
    return system.tokenizer


def outline(config: SeedConfig) -> tuple[nn.Module, InterleavedLM, nn.Module]:
    """Tokenizer, language model and detokenizer without weights, on the meta device. What the detokenizer shares with the
    tokenizer is the same parameter."""
    with without_weights():
        tokenizer = SeedTokenizer(config.tokenizer)
        if isinstance(config.language, MergedLanguageConfig):
            lm = InterleavedLM(outline_llm(config.language.model))
        else:
            lm = InterleavedLM(outline_llm(config.language.base, new_words=config.language.new_words))
        take_codes(lm.llm, config.language)
        rows, codes = lm.llm.rows, config.language.codes
        if (
            rows is not None and codes is not None and codes.draws is not None
        ):  # their codes have no rows that are written
            rows.output = MarkRows(rows.output.table()[codes.codes :], codes.codes)
        drawing = config.detokenizer
        detokenizer: nn.Module
        if isinstance(drawing, MiniDetokenizerConfig):
            detokenizer = mini_detokenizer(drawing, tokenizer)  # type: ignore[arg-type]
        elif isinstance(drawing, UnclipConfig):
            detokenizer = UnclipDetokenizer(drawing, tokenizer)
        else:
            detokenizer = TextLikeDetokenizer(drawing, tokenizer)
    return tokenizer, lm, detokenizer


SOURCES: dict[str, tuple[Source, ...]] = {
    "v2-8b": (
        Source("quantiser and tokenizer, seed_quantizer.pt", "AILab-CVC/seed-tokenizer-2", "Apache-2.0", 1_230_000_000),
        Source("language model", "AILab-CVC/seed-llama-8b-sft", LLAMA2),
        EVA,
        UNCLIP,
    ),
    "v2-14b": (
        Source("quantiser and tokenizer, seed_quantizer.pt", "AILab-CVC/seed-tokenizer-2", "Apache-2.0", 1_230_000_000),
        Source("language model", "AILab-CVC/seed-llama-14b-sft", LLAMA2, 26_200_000_000),
        EVA,
        UNCLIP,
    ),
    "v1": (
        Source("tokenizer", "the authors' page of SEED v1; not on the hub", "not stated"),
        Source("language model", "facebook/opt-2.7b", "OPT's own licence, not for commercial use"),
        EVA,
        Source("image decoder, in the layout of diffusers", "CompVis/stable-diffusion-v1-4", "CreativeML OpenRAIL-M"),
    ),
}
"""What has to be fetched for the variants whose weights are not in the repository, and under which licence; sizes where
the publishers' own listing gave them."""
