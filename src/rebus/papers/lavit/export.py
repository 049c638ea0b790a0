"""A saved LaVIT → the published layout, which the published code and other software read.

Dimension key: none
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebus.checkpoint import LazyTensors, Rule, SavedSystem, config_from_json, export, load_system, write_tensors
from rebus.errors import RebusError
from rebus.papers.lavit.convert import DECODER_RULES, ENCODER_RULES, LANGUAGE_RULES, PROJECTOR_RULES, vision_rules
from rebus.papers.lavit.detokenizer import LowresConfig
from rebus.papers.lavit.language import MergedLanguageConfig
from rebus.papers.lavit.mini_detokenizer import MiniDetokenizerConfig
from rebus.papers.lavit.published import EMPTY, FILES, FOLDERS, SEEN
from rebus.papers.lavit.variants import LavitConfig

CLIP_WIDTH = 1024
"""Width of EVA-CLIP's image embedding, whose head LaVIT does not use."""


def export_published(weights: Path, folder: Path) -> None:
    """Writes a saved system in the published layout: `visual_tokenizer`, `language_model`, and the folder of the image
    decoder that it has. What conversion left out of the vision encoder is written as zeros, since the published code asks
    for it and does not use it.

    Raises RebusError if there is something at `folder`, or `weights` is no LaVIT whose words are in one table.
    """
    saved = load_system(weights)
    if saved.name.partition(":")[0] != "lavit":
        raise RebusError(f"{weights} holds {saved.name}, which LaVIT's layout has no place for. Name a saved LaVIT.")
    config = config_from_json(LavitConfig, saved.config)
    if not isinstance(config.language, MergedLanguageConfig):
        raise RebusError(
            f"{saved.name} reads bytes and has rows of its own for new words, which LaVIT's layout has no place for. "
            "Export a model of the size that was published."
        )
    if config.running_mean or config.words:
        raise RebusError(
            f"{saved.name} reads images as running means or as words, which LaVIT's layout has no place for. Export a model that "
            "does not."
        )
    if folder.exists():
        raise RebusError(f"There is something at {folder} already. Choose another folder.")
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        seeing, language = partial / "visual_tokenizer", partial / "language_model"
        seeing.mkdir()
        language.mkdir()
        for name in saved.files.get("text", {}):
            shutil.copyfile(saved.folder / name, language / name)
        if "tokenizer" in saved.files:
            _export_tokenizer(saved.tensors("tokenizer"), seeing)
        if "lm" in saved.files:
            held = saved.tensors("lm")
            _pickle(_part(held, "input_projector."), PROJECTOR_RULES, language / "visual_weight.bin")
            write_tensors(language, "model", export(_part(held, "llm."), LANGUAGE_RULES))
            about = {**config.language.model, "architectures": ["LlamaForCausalLM"]}
            _write_json(language / "config.json", about)
        if "detokenizer" in saved.files:
            _export_decoder(saved, config, partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _export_tokenizer(held: LazyTensors, folder: Path) -> None:
    seen = {name: held.meta[name] for name in held if name.startswith(SEEN)}
    theirs = export(LazyTensors(seen, held.__getitem__), vision_rules(""))
    vision = {name: theirs[name] for name in theirs}
    width, like = vision["pos_embed"].shape[-1], vision["pos_embed"]
    vision |= {"norm.weight": like.new_zeros(width), "norm.bias": like.new_zeros(width)}
    vision |= {"head.weight": like.new_zeros(CLIP_WIDTH, width), "head.bias": like.new_zeros(CLIP_WIDTH)}
    torch.save(vision, folder / "eva_vitg_psz14.bin")
    rest = LazyTensors({name: held.meta[name] for name in held if name not in seen}, held.__getitem__)
    _pickle(rest, ENCODER_RULES, folder / "tokenizer_encoder.bin")


def _export_decoder(saved: SavedSystem, config: LavitConfig, folder: Path) -> None:
    held, drawing = saved.tensors("detokenizer"), config.detokenizer
    assert not isinstance(drawing, MiniDetokenizerConfig)  # it belongs to a language model that is no release's
    kind = "lowres" if isinstance(drawing, LowresConfig) else "highres"
    own = {name: held.meta[name] for name in held if name.startswith(("decoder.", "head."))}
    _pickle(LazyTensors(own, held.__getitem__), DECODER_RULES, folder / "visual_tokenizer" / FILES[kind])
    pixels = folder / FOLDERS[kind]
    for component, about in (("unet", drawing.diffusion.unet), ("vae", drawing.diffusion.vae)):
        (pixels / component).mkdir(parents=True)
        write_tensors(pixels / component, "diffusion_pytorch_model", _part(held, f"diffusion.{component}."))
        _write_json(pixels / component / "config.json", about)
    (pixels / "scheduler").mkdir()
    _write_json(pixels / "scheduler" / "scheduler_config.json", drawing.diffusion.scheduler)
    if isinstance(drawing, LowresConfig):
        torch.save(held["empty_1SC"], pixels / EMPTY)


def _part(held: LazyTensors, prefix: str) -> LazyTensors:
    """The tensors whose names begin with `prefix`, without it."""
    inside = {name[len(prefix) :]: shape for name, shape in held.meta.items() if name.startswith(prefix)}
    return LazyTensors(inside, lambda name: held[prefix + name])


def _pickle(ours: Mapping[str, Tensor], rules: tuple[Rule, ...], path: Path) -> None:
    theirs = export(ours, rules)
    torch.save({name: theirs[name].clone() for name in theirs}, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
