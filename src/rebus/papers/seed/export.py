"""A saved SEED → the published layout, which other software reads.

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

from rebus.checkpoint import (
    SavedSystem,
    config_from_json,
    export,
    lay_over,
    load_system,
    without_weights,
    write_tensors,
)
from rebus.errors import RebusError
from rebus.nn.text_model import build_causal_lm
from rebus.nn.text_tokenizer import FastTokenizer, TextTokenizer, read_tokenizer, write_tokenizer
from rebus.papers.seed.build import build, tokenizer_layers
from rebus.papers.seed.convert import RULES
from rebus.papers.seed.language import MergedLanguageConfig
from rebus.papers.seed.published import SEEN, special_ids
from rebus.papers.seed.variants import SeedConfig


def export_published(weights: Path, folder: Path) -> None:
    """Writes a saved system in the published layout: `seed_quantizer.pt`, `eva_vit_g.pth`, and `language/`, a folder that
    any LLaMA server reads, image tokens in its tokenizer, adapters and new rows folded in. The image decoder is not
    SEED's own and stays out.

    Raises RebusError if there is something at `folder`, `weights` is no saved SEED, or its codes are read as sums.
    """
    saved = load_system(weights)
    if saved.name.partition(":")[0] != "seed":
        raise RebusError(f"{weights} holds {saved.name}, which SEED's layout has no place for. Name a saved SEED.")
    if folder.exists():
        raise RebusError(f"There is something at {folder} already. Choose another folder.")
    config = config_from_json(SeedConfig, saved.config)
    shared = saved.shared()
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir(parents=True)
    try:
        if "tokenizer" in saved.files:
            theirs = export(lay_over(*tokenizer_layers(saved, shared)), RULES["tokenizer"])
            seen = {name.removeprefix(SEEN): theirs[name] for name in theirs if name.startswith(SEEN)}
            torch.save(seen, partial / "eva_vit_g.pth")
            rest = {name: theirs[name].clone() for name in theirs if not name.startswith(SEEN)}
            torch.save(rest, partial / "seed_quantizer.pt")
        if "lm" in saved.files:
            (partial / "language").mkdir()
            _export_language(saved, config, partial / "language")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _export_language(saved: SavedSystem, config: SeedConfig, folder: Path) -> None:
    if config.language.summed is not None or config.language.codes is not None:
        raise RebusError(
            "This language model reads each code as the sum of its image's so far, which no other server does. Only models that "
            "read codes one by one can be written in the published layout; `save_pretrained` writes this one in ours."
        )
    tensors: Mapping[str, Tensor]
    if isinstance(config.language, MergedLanguageConfig):
        text: TextTokenizer = read_tokenizer(saved.folder)
        tensors, about = export(saved.tensors("lm"), RULES["lm"]), dict(config.language.model)
    else:
        system = build(config, saved.folder, ("lm",), "cpu")
        text, merged = system.grammar.text, system.lm.llm.merge()
        tensors, about = merged.state_dict(), merged.config.to_dict()
    if not isinstance(text, FastTokenizer):
        raise RebusError("A model that reads bytes has no tokenizer to export. Export one with a base of its own.")
    if about.get("tie_word_embeddings"):
        tensors = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    write_tensors(folder, "model", tensors)
    grammar = config.grammar
    ids = special_ids(grammar, text)
    with without_weights():
        kind = type(build_causal_lm(about)).__name__
    stored = next(x.dtype for x in tensors.values() if x.is_floating_point())
    about |= {f"{name}_token_id": number for name, number in ids.items()}
    about |= {"architectures": [kind], "torch_dtype": str(stored).removeprefix("torch.")}
    _write_json(folder / "config.json", about)
    _write_json(folder / "generation_config.json", {f"{name}_token_id": number for name, number in ids.items()})
    marks = {"<img>": grammar.begin_image, "</img>": grammar.end_image}
    added = {f"<img_{code:05d}>": grammar.first_code + code for code in range(grammar.codes)} | marks
    write_tokenizer(text, folder, added, special=marks, bos=grammar.bos, eos=grammar.eos, pad=grammar.pad)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
