"""What SEED's stages left on real data, as one saved system: the tokenizer of stages 1 and 2, the language model of
stages 3 and 4 with everything merged. It is then as a converted release: `load` reads it, `rebus export` writes it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rebus.checkpoint import SavedSystem, config_from_json, config_to_json, lay_over, load_system, save_system
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import text_file
from rebus.papers.seed import tuning
from rebus.papers.seed.build import tokenizer_layers
from rebus.papers.seed.language import LanguageConfig, MergedLanguageConfig
from rebus.papers.seed.pairs import load_vision
from rebus.papers.seed.stages.stage2_codebook import load_tokenizer
from rebus.papers.seed.tokenizer_config import SeedTokenizerConfig
from rebus.papers.seed.variants import VARIANTS, SeedConfig
from rebus.train.checkpointing import read_json

VISION = "eva_vit_g.pth"
"""The vision encoder's file, which lies beside the stages."""


def pack_trained(work: Path, folder: Path, variant: str) -> SavedSystem:
    """Writes `folder`. With stage 3's weights under `work` it is a whole system, whose tokenizer (and image decoder, if it
    has one) is that of the saved SEED that stage 3 was given; without, it is the tokenizer of stages 1 and 2 and of
    `work/eva_vit_g.pth`. Numbers stay as they are.

    Raises RebusError when weights are missing or do not fit each other.
    """
    if (work / tuning.PRETRAINED).exists():
        return _whole(work, folder, variant)
    return _tokenizer(work, folder, variant)


def _tokenizer(work: Path, folder: Path, variant: str) -> SavedSystem:
    stages = [work / f"seed.{name}" for name in ("stage1_qformer", "stage2_codebook")]
    files = [stage / "weights.safetensors" for stage in stages]
    for file in (*files, work / VISION):
        if not file.exists():
            raise RebusError(
                f"There is no {file}, of which a tokenizer is made. Train the stage, or put the file there."
            )
    config = config_from_json(SeedTokenizerConfig, _config(stages[1])["tokenizer"])
    tokenizer = load_tokenizer(config, *files)
    load_vision(tokenizer, work / VISION)
    system = replace(VARIANTS[variant], tokenizer=config)
    saved = SavedSystem(f"seed:{variant}", config_to_json(system), source="trained by stages 1 and 2")
    return save_system(folder, saved, {"tokenizer": tokenizer.state_dict()}, overwrite=True)


def _whole(work: Path, folder: Path, variant: str) -> SavedSystem:
    given = _config(work / tuning.PRETRAINED)
    system = config_from_json(SeedConfig, given["system"])
    language = system.language
    if not isinstance(language, LanguageConfig) or isinstance(language.base, Mapping):
        raise RebusError(
            "A language model of random weights has no text tokenizer to be saved with. Train one with a `base` folder."
        )
    start = tuning.Parts(system, Path(), Path(given["tokenizer"]))
    tuned = (work / tuning.TUNED / "weights.safetensors").exists()
    module = tuning.merged(start, work, "chat", tuned=tuned)
    instructed = work / "seed.stage4_instruct"
    if instructed.exists():
        tuning.adapt(module, language)
        tuning.lay(module, instructed)
    tensors, about = tuning.merged_tensors(module)
    seen = load_system(start.tokenizer)
    seeing = config_from_json(SeedConfig, seen.config)
    shared = seen.shared()
    parts: dict[str, Mapping[str, Tensor]] = {
        "tokenizer": lay_over(*tokenizer_layers(seen, shared)),
        "lm": {f"base.{name}": tensor for name, tensor in tensors.items()},
    }
    if "detokenizer" in seen.files:
        parts["detokenizer"] = seen.tensors("detokenizer")
    config = replace(
        system,
        tokenizer=seeing.tokenizer,
        detokenizer=seeing.detokenizer,
        language=MergedLanguageConfig(dict(about), language.summed, language.codes),
        weights=None,
        base=None,
    )
    named = [path.name for path in (work / tuning.PRETRAINED, work / tuning.TUNED, instructed) if path.exists()]
    saved = SavedSystem(f"seed:{variant}", config_to_json(config), source=f"trained by {', '.join(named)}")
    return save_system(folder, saved, parts, others={"text": text_file(Path(language.base))}, overwrite=True)


def _config(stage: Path) -> dict[str, Any]:
    """The resolved config that a stage wrote beside its weights. Raises RebusError when there is none."""
    held = read_json(stage / "config.json")
    if not isinstance(held, dict) or not isinstance(held.get("config"), dict):
        raise RebusError(f"{stage} has no config.json that says how it was trained. Train the stage again.")
    return held["config"]
