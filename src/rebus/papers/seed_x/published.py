"""Published SEED-X files → a saved system: tokenizer, language model with its projectors, image decoder. The way back is
in `export.py`.

Everything is read and written one tensor at a time; what the vision encoder says of an empty picture, which image
decoders are guided away from, is computed one block at a time.

Dimension key: S slots · C visual width
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebus.checkpoint import (
    Converted,
    LazyTensors,
    SavedSystem,
    config_to_json,
    convert,
    lay_over,
    load_module,
    read_tensors,
    save_system,
    without_weights,
)
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import read_tokenizer
from rebus.papers.seed_x.build import assemble, named
from rebus.papers.seed_x.convert import AGENT_RULES, LANGUAGE_RULES, tuned_rules, vision_rules
from rebus.papers.seed_x.convert_decoder import STAGES, convert_decoder
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LoraConfig, MergedLanguageConfig, merged_language
from rebus.papers.seed_x.published_decoder import SdxlDetokenizerConfig
from rebus.papers.seed_x.spelling import from_added_tokens
from rebus.papers.seed_x.tokenizer import SeedXTokenizerConfig
from rebus.papers.seed_x.variants import VARIANTS, SeedXConfig
from rebus.papers.seed_x.vision import VisionConfig, VisionEncoder, pool_rows

MODELS = {"17b-i": "seed_x_i", "17b": "seed_x", "17b-edit": "seed_x_edit"}
"""Variants and their folders in the release."""
VISION, QWEN, QWEN_PREFIX = "qwen_vit_G.pt", "Qwen-VL-Chat", "transformer.visual."
SDXL = "stable-diffusion-xl-base-1.0"
AGENT, ADDED = "agent/pytorch_model.bin", "added_tokens.json"
TUNED = "checkpoint*/pytorch_model.bin"


@dataclass(frozen=True)
class Published:
    """Where the published files lie."""

    vision: Path
    """The vision encoder: `qwen_vit_G.pt`, or the folder of Qwen-VL-Chat, which holds it among other tensors."""
    text: Path
    """Folder of the text tokenizer, with `added_tokens.json`."""
    agent: Path | None = None
    """`agent/pytorch_model.bin`, the projectors; none, and no checkpoint: no language model is converted."""
    language: Path | None = None
    """Folder `llm` of the language model; beside a checkpoint only its config is read."""
    tuned: Path | None = None
    """A checkpoint of instruction tuning, which holds projectors, language model and adapters."""
    decoder: Path | None = None
    """File of an image decoder's stage; none: images stay features."""
    sdxl: Path | None = None
    """Folder of SDXL that it is laid over."""


def convert_folder(
    source: Path,
    folder: Path,
    variant: str,
    *,
    decoder: Path | None = None,
    ignore_unexpected: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """`convert_published` of the files that lie anywhere under `source`, under their published names; `decoder` is the
    folder of SDXL where it lies elsewhere. Raises RebusError when a file is not there, or there are several of it."""
    return convert_published(
        find_published(source, variant or next(iter(MODELS)), decoder),
        folder,
        variant or next(iter(MODELS)),
        ignore_unexpected=ignore_unexpected,
        dtype=dtype,
        overwrite=overwrite,
    )


def find_published(source: Path, variant: str, sdxl: Path | None = None) -> Published:
    """The published files of a variant under `source`: of several models that of the variant, of the two image decoders
    the one that belongs to it. A checkpoint of instruction tuning (`checkpoint-20000/pytorch_model.bin`) goes before a
    model. Raises RebusError as `convert_folder` does."""

    sizes = _published(variant)

    def one(what: str, paths: Sequence[Path]) -> Path | None:
        if len(paths) > 1:
            listed = ", ".join(str(path.relative_to(source)) for path in paths)
            raise RebusError(f"{source} holds several of {what}: {listed}. Name a folder that holds one of them.")
        return paths[0] if paths else None

    def found(pattern: str) -> list[Path]:
        return sorted(source.rglob(pattern))

    vision = one(VISION, found(VISION)) or one(QWEN, [path for path in found(QWEN) if path.is_dir()])
    text = one("the text tokenizer", [path for path in found(ADDED) if path.with_name("tokenizer.model").exists()])
    for what, path in ((f"{VISION} nor a folder {QWEN}", vision), (f"tokenizer.model beside an {ADDED}", text)):
        if path is None:
            raise RebusError(f"There is no {what} under {source}. Name the folder of a downloaded SEED-X release.")
    assert vision is not None and text is not None
    agents = found(AGENT)
    agent = one(AGENT, [path for path in agents if path.parts[-3] == MODELS[variant]] or agents)
    language = agent.parents[1] / "llm" if agent is not None else None
    drawn = sizes.detokenizer
    number = 2 if isinstance(drawn, SdxlDetokenizerConfig) and drawn.source_channels else 1
    return Published(
        vision,
        text.parent,
        agent,
        language if language is not None and language.is_dir() else None,
        one(TUNED, found(TUNED)),
        one(STAGES[number], found(f"{Path(STAGES[number]).name}/pytorch_model.bin")),
        sdxl or one(SDXL, [path for path in found(SDXL) if path.is_dir()]),
    )


def _published(variant: str) -> SeedXConfig:
    """The config of a published variant. Raises RebusError where nothing is published under this name."""
    if variant not in MODELS:
        raise RebusError(f"There is no published SEED-X {variant!r}. Name {', '.join(MODELS)}.")
    return VARIANTS[variant]


def convert_published(
    found: Published,
    folder: Path,
    variant: str = "17b-i",
    *,
    config: SeedXConfig | None = None,
    lora: LoraConfig | None = None,
    ignore_unexpected: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """Writes `folder`, which `load(f"seed_x:{variant}", weights=folder)` reads. Sizes of the language model and of SDXL
    are read from their configs, ids of new words from the text tokenizer; `config` gives other sizes of the rest than the
    variant's. `lora` is how a checkpoint's adapters were trained (their rank is read from it): no file says so.

    `ignore_unexpected` are patterns of published names that may stay without a place; `dtype` is what is stored (none: as
    published). Raises RebusError for an unknown variant, and listing whatever does not fit.
    """
    config = config or _published(variant)
    text = read_tokenizer(found.text)
    config = replace(config, grammar=from_added_tokens(_json(found.text / ADDED), config.grammar))
    SeedXGrammar(text, config.grammar, "")  # raises for a tokenizer that lacks the template's special words
    parts: dict[str, Mapping[str, Tensor]] = {}
    results: dict[str, list[Converted]] = {}
    parts["tokenizer"], results["tokenizer"] = _tokenizer(found.vision, config, ignore_unexpected)
    if found.agent is not None or found.tuned is not None:
        config, parts["lm"], results["lm"] = _language(found, config, lora or LoraConfig(), ignore_unexpected)
    if found.decoder is not None and found.sdxl is not None:
        sizes = config.detokenizer if isinstance(config.detokenizer, SdxlDetokenizerConfig) else None
        empty_SC = empty_features(parts["tokenizer"], config.tokenizer)
        made = convert_decoder(found.decoder, found.sdxl, empty_SC, config=sizes, ignore_unexpected=ignore_unexpected)
        config = replace(config, detokenizer=made.config)
        parts["detokenizer"], results["detokenizer"] = made.tensors, [made.converted]
    saved = SavedSystem(
        name=f"seed_x:{variant}",
        config=config_to_json(config),
        source="converted from " + ", ".join(path.name for path in vars(found).values() if path is not None),
        dropped={
            part: all_ for part, many in results.items() if (all_ := {k: v for r in many for k, v in r.dropped.items()})
        },
        ignored={part: names for part, many in results.items() if (names := [n for r in many for n in r.ignored])},
    )
    others = {"text": {name: (found.text / name).read_bytes() for name in ("tokenizer.model", ADDED)}}
    return save_system(folder, saved, parts, others=others, dtype=dtype, overwrite=overwrite)


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RebusError(f"{path} cannot be read ({error}). Fetch it again.") from None
    if not isinstance(held, dict):
        raise RebusError(f"{path} should hold names and values, but holds something else. Fetch it again.")
    return held


def _vision_sizes(config: SeedXTokenizerConfig) -> VisionConfig:
    if not isinstance(config.vision, VisionConfig):
        raise RebusError(
            "SEED-X's published vision encoder is Qwen-VL's, but this config has another, "
            f"{type(config.vision).__name__}. Use the config of a published variant."
        )
    return config.vision


def _tokenizer(path: Path, config: SeedXConfig, ignore: Sequence[str]) -> tuple[LazyTensors, list[Converted]]:
    sizes = _vision_sizes(config.tokenizer)
    theirs = read_tensors(path)
    if any(name.startswith(QWEN_PREFIX) for name in theirs):
        theirs = named(theirs, QWEN_PREFIX, "")
    with without_weights():
        ours = VisionEncoder(sizes).state_dict()
    done = convert(theirs, vision_rules(sizes.trunk.heads), ours, ignore_unexpected=ignore)
    return named(done.tensors, "", "vision."), [done]


def _language(
    found: Published, config: SeedXConfig, lora: LoraConfig, ignore: Sequence[str]
) -> tuple[SeedXConfig, LazyTensors, list[Converted]]:
    assert isinstance(config.language, MergedLanguageConfig)
    model = dict(config.language.model)
    if found.language is not None:
        unused = ("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "auto_map")
        model = {key: value for key, value in _json(found.language / "config.json").items() if key not in unused}
    spelling = config.grammar
    words, needed = int(model.get("vocab_size", 0)), max(spelling.end_box, spelling.first_slot + spelling.slots - 1)
    if words <= needed:
        raise RebusError(
            f"The language model has {words} words, but SEED-X's own go up to id {needed}. "
            "Name the language model of a SEED-X release."
        )
    if found.tuned is not None:
        theirs = read_tensors(found.tuned)
        ranks = [shape.shape[0] for name, shape in theirs.meta.items() if ".lora_A." in name]
        rules, language = tuned_rules(lora.targets), MergedLanguageConfig(model)
        if ranks:
            language = replace(language, lora=replace(lora, rank=ranks[0]))
    else:
        assert found.agent is not None
        if found.language is None:
            raise RebusError(f"There is no folder llm beside that of {found.agent}. Fetch the whole model.")
        theirs = lay_over(read_tensors(found.language), read_tensors(found.agent))
        rules, language = (*AGENT_RULES, *LANGUAGE_RULES), MergedLanguageConfig(model)
    config = replace(config, language=language)
    with without_weights():
        ours = assemble(config, merged_language(language)).state_dict()
    done = convert(theirs, rules, ours, ignore_unexpected=ignore)
    return config, done.tensors, [done]


@torch.no_grad()
def empty_features(tensors: Mapping[str, Tensor], config: SeedXTokenizerConfig) -> Tensor:
    """`SeedXTokenizer.blank` of a tokenizer's tensors, S x C in float32, with one block in memory at a time."""
    with without_weights():
        vision = VisionEncoder(_vision_sizes(config))
    blocks, vision.trunk.blocks = list(vision.trunk.blocks), nn.ModuleList()
    inside = "vision.trunk.blocks."
    load_module(
        vision, {name[7:]: tensors[name] for name in tensors if not name.startswith(inside)}, dtype=torch.float32
    )
    side = vision.config.trunk.image_size
    x_1NC = vision.trunk.embed(torch.zeros(1, 3, side, side))
    for number in range(len(blocks)):
        prefix = f"{inside}{number}."
        own = {name[len(prefix) :]: tensors[name] for name in tensors if name.startswith(prefix)}
        block = blocks.pop(0)
        load_module(block, own, dtype=torch.float32)
        x_1NC = block(x_1NC)
    return pool_rows(vision.proj(vision.norm(vision.pool(x_1NC))), config.pooled)[0]
