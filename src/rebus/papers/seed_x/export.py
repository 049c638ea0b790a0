"""A saved SEED-X → the published layout, which the published code and other software read.

Dimension key: none
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rebus.checkpoint import (
    LazyTensors,
    Rule,
    SavedSystem,
    config_from_json,
    export,
    lay_over,
    load_system,
    write_pickle,
    write_tensors,
)
from rebus.errors import RebusError
from rebus.papers.seed_x.build import named
from rebus.papers.seed_x.convert import AGENT_RULES, LANGUAGE_RULES, tuned_rules, vision_rules
from rebus.papers.seed_x.convert_decoder import export_decoder
from rebus.papers.seed_x.language import MergedLanguageConfig
from rebus.papers.seed_x.published import AGENT, MODELS, VISION
from rebus.papers.seed_x.published_decoder import SdxlDetokenizerConfig
from rebus.papers.seed_x.variants import SeedXConfig
from rebus.papers.seed_x.vision import VisionConfig

TEXT = "cvlm_llama2_tokenizer_100img_and_224loc_addpatch"
"""Folder of the text tokenizer."""


def export_published(weights: Path, folder: Path) -> None:
    """Writes a saved system in the published layout: vision encoder, text tokenizer, model, and the image decoder that it
    has, without the VAE, which is SDXL's own. A model with adapters is written as a checkpoint of instruction tuning; the
    norms' values from before training, which it does not keep, are those from after it.

    Raises RebusError if there is something at `folder`, or `weights` is no SEED-X whose words are in one table.
    """
    saved = load_system(weights)
    paper, _, variant = saved.name.partition(":")
    if paper != "seed_x":
        raise RebusError(f"{weights} holds {saved.name}, which SEED-X's layout has no place for. Name a saved SEED-X.")
    config = config_from_json(SeedXConfig, saved.config)
    if not isinstance(config.language, MergedLanguageConfig) or not isinstance(config.tokenizer.vision, VisionConfig):
        raise RebusError(
            f"{saved.name} has parts that SEED-X's layout has no place for: rows of its own for new words, or another "
            "vision encoder than Qwen-VL's. Export a model of the size that was published."
        )
    if config.projectors.running_mean or config.projectors.words or config.projectors.says or config.projectors.keeps:
        raise RebusError(
            f"{saved.name} reads images as running means or as words, draws from words or keeps what it has seen, which SEED-X's layout has no place for. "
            "Export a model that does not."
        )
    if folder.exists():
        raise RebusError(f"There is something at {folder} already. Choose another folder.")
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        (partial / TEXT).mkdir()
        for name in saved.files.get("text", {}):
            shutil.copyfile(saved.folder / name, partial / TEXT / name)
        if "tokenizer" in saved.files:
            (partial / "QwenViT").mkdir()
            vision = named(saved.tensors("tokenizer"), "vision.", "")
            rules = vision_rules(config.tokenizer.vision.trunk.heads)
            write_pickle(partial / "QwenViT" / VISION, export(vision, rules))
        if "lm" in saved.files:
            _export_language(saved, config.language, partial / MODELS.get(variant, variant))
        if "detokenizer" in saved.files and isinstance(config.detokenizer, SdxlDetokenizerConfig):
            export_decoder(saved.tensors("detokenizer"), config.detokenizer, partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _export_language(saved: SavedSystem, config: MergedLanguageConfig, folder: Path) -> None:
    held, language = saved.tensors("lm"), folder / "llm"
    language.mkdir(parents=True)
    about = {**config.model, "architectures": ["LlamaForCausalLM"]}
    (language / "config.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
    if config.lora is not None:
        theirs = export(held, tuned_rules(config.lora.targets))
        trained = ".modules_to_save.default."
        before = {name.replace(trained, ".original_module."): name for name in theirs if trained in name}
        kept = LazyTensors({k: theirs.meta[v] for k, v in before.items()}, lambda name: theirs[before[name]])
        (folder / "checkpoint").mkdir()
        write_pickle(folder / "checkpoint" / "pytorch_model.bin", lay_over(theirs, kept))
        return
    path = folder / AGENT
    path.parent.mkdir()
    write_pickle(path, _some(held, "input_projector.", "output_projector.", rules=AGENT_RULES))
    write_tensors(language, "model", _some(held, "llm.", rules=LANGUAGE_RULES))


def _some(held: LazyTensors, *prefixes: str, rules: Sequence[Rule]) -> LazyTensors:
    """The tensors whose names begin with one of the prefixes, under their published names."""
    own: dict[str, Tensor] = {name: shape for name, shape in held.meta.items() if name.startswith(prefixes)}
    return export(LazyTensors(own, held.__getitem__), rules)
