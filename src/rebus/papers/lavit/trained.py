"""What LaVIT's stages left on real data, as one saved system, which then is as a converted release: `load` reads it,
`rebus export` writes it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rebus.checkpoint import SavedSystem, config_from_json, config_to_json, load_module, load_system, save_system
from rebus.diffusion.pipeline import read_diffusion
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import text_file
from rebus.papers.lavit.bank import STAGES, stage_files
from rebus.papers.lavit.detokenizer import HighresConfig, LavitDetokenizer, LowresConfig
from rebus.papers.lavit.language import LanguageConfig, MergedLanguageConfig
from rebus.papers.lavit.language_training import begin, go_on
from rebus.papers.lavit.pictures import published_vision
from rebus.papers.lavit.reconstruction import ReconstructionConfig, load_tokenizer
from rebus.papers.lavit.stages import stage3_pixels
from rebus.papers.lavit.stages.stage2_language import saved_tokenizer
from rebus.papers.lavit.variants import VARIANTS, LavitConfig
from rebus.train.checkpointing import read_json

VISION = "eva_vitg_psz14.bin"
"""The vision encoder's file, which lies beside the stages."""
PIXELS = "pixels"
"""The diffusers folder that stage 3 began with, beside the stages."""
LANGUAGE = ("lavit.stage2_language", "lavit.stage4_instruct")


def pack_trained(work: Path, folder: Path, variant: str) -> SavedSystem:
    """Writes `folder`: the tokenizer of stage 1, the image decoder where there is a stage 3, and, where there is a stage 2,
    the language model, everything merged, with the saved tokenizer that it was given. `work` holds the vision encoder's
    file and the diffusers folder that the stages began with. Numbers stay as they are.

    Raises RebusError when weights are missing or do not fit each other.
    """
    config = replace(VARIANTS[variant], weights=None, base=None)
    parts: dict[str, Mapping[str, Tensor]] = {}
    others: dict[str, dict[str, bytes]] = {}
    if all(file.exists() for file in stage_files(work)):
        given = _config(work / STAGES[1])
        loss = config_from_json(ReconstructionConfig, given["loss"])
        tokenizer = load_tokenizer(loss.tokenizer, published_vision(loss.tokenizer, work / VISION), *stage_files(work))
        config = replace(config, tokenizer=loss.tokenizer, projector=loss.tokenizer.merger)
        parts["tokenizer"] = tokenizer.state_dict()
        if (work / stage3_pixels.NAME).exists():
            config = replace(config, detokenizer=(drawn := _drawing(work)).config)
            drawn.codebook_KE.copy_(tokenizer.quantizer.codebook_KC)
            parts["detokenizer"] = drawn.state_dict()
    if (work / LANGUAGE[0]).exists():
        config, own, text = _language(work, config)
        parts |= own
        others["text"] = text
    if not parts:
        raise RebusError(
            f"{work} holds no weights of {', '.join((*STAGES, LANGUAGE[0]))}, of which a system is made. Train them first."
        )
    source = "trained by " + ", ".join(path.name for path in sorted(work.glob("lavit.*")))
    saved = SavedSystem(f"lavit:{variant}", config_to_json(config), source=source)
    return save_system(folder, saved, parts, others=others, overwrite=True)


def _drawing(work: Path) -> LavitDetokenizer:
    """The image decoder, without its codebook."""
    held = _config(work / stage3_pixels.NAME)
    config = config_from_json(stage3_pixels.Config, held).detokenizer
    assert isinstance(config, LowresConfig | HighresConfig)  # the mini is packed otherwise
    diffusion, networks = read_diffusion(work / PIXELS)
    # the published code runs the DDIM sampler on whatever schedule the folder has
    diffusion = replace(diffusion, scheduler={**diffusion.scheduler, "_class_name": "DDIMScheduler"})
    made = LavitDetokenizer(replace(config, diffusion=diffusion))
    load_module(made.diffusion, networks, dtype=torch.float32)
    made.decoder.load_state_dict(stage3_pixels.decoder_weights(work))
    found = load_file(work / stage3_pixels.NAME / "weights.safetensors")
    made.load_state_dict({name.removeprefix("detokenizer."): x for name, x in found.items()}, strict=False)
    return made


def _language(work: Path, config: LavitConfig) -> tuple[LavitConfig, dict[str, Mapping[str, Tensor]], dict[str, bytes]]:
    held = _config(work / LANGUAGE[0])
    system = config_from_json(LavitConfig, held["system"])
    language = system.language
    if not isinstance(language, LanguageConfig) or isinstance(language.base, Mapping):
        raise RebusError(
            "A language model of random weights has no text tokenizer to be saved with. Train one with a `base` folder."
        )
    seen = load_system(held["tokenizer"])
    base = Path(held["base"] or language.base)
    module = begin(
        system,
        saved_tokenizer(seen.folder),
        template="plain",
        loss="paper",
        pack=None,
        visual_loss=True,
        selection="threshold",
        base=base,
        generator=torch.Generator(),
    )
    for name in LANGUAGE:
        if (work / name).exists():
            go_on(module, work / name)
    merged = module.lm.llm.merge()
    tensors = {f"llm.base.{name}": x for name, x in merged.state_dict().items()}
    if merged.config.tie_word_embeddings:
        del tensors["llm.base.lm_head.weight"]
    projector = module.lm.input_projector
    assert projector is not None
    tensors |= {f"input_projector.{name}": x for name, x in projector.state_dict().items()}
    about: dict[str, Any] = dict(merged.config.to_dict())
    seeing = config_from_json(LavitConfig, seen.config)
    config = replace(
        config,
        tokenizer=seeing.tokenizer,
        projector=system.projector,
        grammar=system.grammar,
        language=MergedLanguageConfig(about),
    )
    parts: dict[str, Mapping[str, Tensor]] = {"lm": tensors, "tokenizer": seen.tensors("tokenizer")}
    return config, parts, text_file(base)


def _config(stage: Path) -> dict[str, Any]:
    """The resolved config that a stage wrote beside its weights. Raises RebusError when there is none."""
    held = read_json(stage / "config.json")
    if not isinstance(held, dict) or not isinstance(held.get("config"), dict):
        raise RebusError(f"{stage} has no config.json that says how it was trained. Train the stage again.")
    return held["config"]
