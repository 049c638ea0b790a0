"""A whole SEED-X from its config and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rebus.checkpoint import LazyTensors, SavedSystem, load_module, load_system, without_weights
from rebus.errors import RebusError
from rebus.lm import InterleavedLM
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel, own_names
from rebus.nn.text_tokenizer import TextTokenizer, read_tokenizer
from rebus.packages import embedded
from rebus.papers.seed_x.detokenizer import SeedXDetokenizer, SeedXDetokenizerConfig
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LanguageConfig, MergedLanguageConfig, base_language, merged_language
from rebus.papers.seed_x.projectors import SeedXInputProjector, SeedXOutputProjector
from rebus.papers.seed_x.published_decoder import SdxlDetokenizer
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import SeedXConfig
from rebus.papers.seed_x.vision import VisionConfig
from rebus.system import System

Drawer = SdxlDetokenizer | SeedXDetokenizer
PROJECTORS = ("input_projector.", "output_projector.")
TRUNK = "vision.trunk."


def build(
    config: SeedXConfig,
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
    source = "seed_x random" if saved is None else f"{saved.name} {saved.hash('tokenizer')}"
    number = dtype or fast_dtype(device)
    # random image decoders are guided away from what the tokenizer says of nothing; saved ones hold it
    seen = "tokenizer" in parts or (saved is None and "detokenizer" in parts)
    tokenizer = read_tokenizer_part(config, saved, shared, source, number, generator) if seen else None
    lm, text = _language(config, saved, "lm" in parts, source, base_llm, number, generator)
    detokenizer = None
    if "detokenizer" in parts:
        detokenizer = _detokenizer(config, tokenizer, saved, shared, source, number, generator)
    return System(
        grammar=SeedXGrammar(text, config.grammar, source),
        lm=lm.eval() if lm.llm.device.type == "meta" else lm.to(device).eval(),
        tokenizer=tokenizer.to(device).eval() if tokenizer is not None and "tokenizer" in parts else None,
        detokenizer=None if detokenizer is None else detokenizer.to(device).eval(),
        folder=None if saved is None else saved.folder,
    )


def official(config: SeedXConfig) -> SeedXConfig:
    """The config with the published inference code's choices where they differ from ours: a reply may hold any word but
    those of an image's inside, so that boxes are cut off, and images begun that are never finished."""
    return replace(config, grammar=replace(config.grammar, replies="free"))


def _embedded(name: str) -> Path:
    try:
        return embedded(name)
    except RebusError as error:
        raise RebusError(
            f"{error} Weights that were never trained here are made by runs/{name.replace('-', '_')}.sh."
        ) from None


def read_tokenizer_part(
    config: SeedXConfig,
    saved: SavedSystem | None,
    shared: SavedSystem | None,
    source: str,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> SeedXTokenizer:
    """The tokenizer with the saved weights (none: random ones). The vision transformer comes from the shared weights where
    there are such; the released one, which nothing trains, is held in `dtype`, others in float32."""
    with contextlib.nullcontext() if saved is None else without_weights():
        tokenizer = SeedXTokenizer(config.tokenizer, source=source, generator=generator)
    if saved is None:
        return tokenizer
    layers = [] if shared is None else [named(shared.tensors("vision"), "vit.", TRUNK)]
    if "tokenizer" in saved.files:  # one that is the shared vision encoder has no tensors of its own
        layers.append(saved.tensors("tokenizer"))
    released = isinstance(config.language, MergedLanguageConfig) and isinstance(config.tokenizer.vision, VisionConfig)
    load_module(tokenizer, *layers, dtype=dtype if released else torch.float32)
    return tokenizer


def named(tensors: LazyTensors, old: str, new: str) -> LazyTensors:
    """The tensors whose names begin with `old`, under names that begin with `new`."""
    meta = {new + name[len(old) :]: x for name, x in tensors.meta.items() if name.startswith(old)}
    return LazyTensors(meta, lambda name: tensors[old + name[len(new) :]])


def assemble(
    config: SeedXConfig, llm: TextModel, source: str = "seed_x", generator: torch.Generator | None = None
) -> InterleavedLM:
    """A language model with projectors, whose weights are random. Raises RebusError when widths do not agree."""
    sizes = config.projectors
    seen, drawn = config.tokenizer.vision.width, config.tokenizer.slots
    pairs = {
        "the way in leads to width {} and the language model takes {}": (sizes.into.width, llm.width),
        "the language model gives width {} and the way out takes {}": (llm.width, sizes.out_of.source_width),
        "the vision encoder gives width {} and the way in takes {}": (seen, sizes.into.source_width),
        "the way out leads to width {} and image targets have {}": (sizes.out_of.width, seen),
        "the way in gives {} vectors and a view has {} slots": (sizes.into.queries, config.grammar.slots),
        "the way out gives {} vectors and image targets have {}": (sizes.out_of.queries, drawn),
        "an image to be drawn has {} vectors and {} slots": (drawn, config.grammar.slots),
        "a view has {} vectors and the grammar expects {}": (config.tokenizer.vision.vectors, config.grammar.vectors),
    }
    wrong = [text.format(*pair) for text, pair in pairs.items() if pair[0] != pair[1]]
    if wrong:
        raise RebusError(
            f"The parts of this SEED-X do not belong together: {'; '.join(wrong)}. Use the configs of one variant."
        )
    return InterleavedLM(
        llm,
        SeedXInputProjector(sizes.into, generator, running_mean=sizes.running_mean, words=sizes.words),
        SeedXOutputProjector(
            sizes.out_of,
            sizes.regression,
            source=source,
            keeps=sizes.keeps,
            words=sizes.says,
            saying_weight=sizes.saying_weight,
            generator=generator,
        ),
        sizes.image_weight,
    )


def _language(
    config: SeedXConfig,
    saved: SavedSystem | None,
    wanted: bool,
    source: str,
    base: Path | None,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> tuple[InterleavedLM, TextTokenizer]:
    """The language model with its projectors, and its text tokenizer; without weights where it is not `wanted`."""
    text: TextTokenizer
    if isinstance(config.language, MergedLanguageConfig):
        assert saved is not None
        text = read_tokenizer(saved.folder)
        with without_weights():
            llm = merged_language(config.language)
    else:
        llm, text = base_language(config.language, base=base, dtype=dtype, generator=generator)
    # what is not wanted, beside a base that is there all the same, is small and may stay random
    filled = saved is not None and (wanted or isinstance(config.language, MergedLanguageConfig))
    with without_weights() if filled else contextlib.nullcontext():
        lm = assemble(config, llm, source, generator)
    if saved is not None and wanted:
        stored = saved.tensors("lm")
        if llm.rows is None:
            load_module(lm, stored, dtype=dtype)
        else:
            load_own(lm, stored)
    return lm, text


def load_own(lm: InterleavedLM, stored: LazyTensors) -> None:
    """Rows of new words, adapters and projectors, and what of the base model was trained in full. Raises RebusError when
    one of the former is missing, or something is no part of the model."""
    ours = lm.state_dict()
    missing, surplus = sorted(set(own_language(lm)) - set(stored)), sorted(set(stored) - set(ours))
    if missing or surplus:
        raise RebusError(
            f"The language model's weights do not fit this SEED-X: {len(missing)} tensors are missing "
            f"({', '.join(missing[:2])}), {len(surplus)} are not known ({', '.join(surplus[:2])}). "
            "Load the variant that they were saved as."
        )
    base = LazyTensors({name: x for name, x in ours.items() if name not in stored}, lambda name: ours[name])
    load_module(lm, base, stored)


def own_language(lm: InterleavedLM) -> list[str]:
    """Names of the tensors that are not the base language model's: rows of new words, adapters, projectors."""
    own = {f"llm.{name}" for name in own_names(lm.llm)}
    return [name for name in lm.state_dict() if name in own or name.startswith(PROJECTORS)]


def _detokenizer(
    config: SeedXConfig,
    tokenizer: SeedXTokenizer | None,
    saved: SavedSystem | None,
    shared: SavedSystem | None,
    source: str,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> Drawer:
    if isinstance(config.detokenizer, SeedXDetokenizerConfig):
        mini = SeedXDetokenizer(config.detokenizer, source=source, generator=generator)
        if saved is not None:
            codec = [] if shared is None else [named(shared.tensors("vae"), "", "codec.")]
            load_module(mini, *codec, saved.tensors("detokenizer"), dtype=torch.float32)
        return mini
    with contextlib.nullcontext() if saved is None else without_weights():
        made = SdxlDetokenizer(config.detokenizer, source=source, generator=generator)
    if saved is not None:
        load_module(made, saved.tensors("detokenizer"), dtype=torch.float32)
    elif tokenizer is not None:
        made.empty_SC.copy_(tokenizer.blank().x_WNC[0])
    made.diffusion.to(dtype)
    if dtype == torch.float16 and made.diffusion.vae.config.force_upcast:
        made.diffusion.vae.float()  # SDXL's overflows in half precision
    return made


def own_tensors(
    config: SeedXConfig, tokenizer: SeedXTokenizer, lm: InterleavedLM, detokenizer: Drawer
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part that are this system's own, not of the base language model nor of the shared weights, as
    `save_system` takes them."""
    shared = config.base is not None
    drawn, language, seen = detokenizer.state_dict(), lm.state_dict(), tokenizer.state_dict()
    if isinstance(config.language, LanguageConfig) and isinstance(config.language.base, str):
        language = {name: language[name] for name in own_language(lm)}
    if shared:
        drawn = {name: x for name, x in drawn.items() if not name.startswith("codec.")}
        seen = {name: x for name, x in seen.items() if not name.startswith(TRUNK)}
    return {"tokenizer": seen, "lm": language, "detokenizer": drawn}
