"""SEED-LLaMA's language stages on real data: pre-training, merging, tuning of all but the embeddings, instructions.

What each stage leaves in its folder is only what it trained. The model of a later stage is built from the beginning:
base, rows and adapters of stage 3, merged; over that what was tuned in full; over that new adapters (SEED-LLaMA
sections 3.2 and 3.3).

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.checkpoint import SavedSystem, config_from_json, load_module, load_system, without_weights
from rebus.data.source_batches import Source, SourceBatch, SourceBatches, read_places
from rebus.document import Document
from rebus.errors import RebusError
from rebus.grammar import LossKind, TemplateName
from rebus.lm import InterleavedLM, Losses
from rebus.nn.lora import add_lora
from rebus.papers.seed.build import tokenizer_layers
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import LanguageConfig, build_language, share_codebook
from rebus.papers.seed.templates import TEMPLATES
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import SeedConfig
from rebus.sequence import Collated, collated
from rebus.sequence import Sequence as Words
from rebus.system import encode
from rebus.train import parallel

PRETRAINED, TUNED = "seed.stage3_pretrain", "seed.stage3_full"
"""Folders of the stages whose weights a later one reads."""
IN_FULL = ("lm.llm.base.*norm*", "lm.llm.base.*embed_tokens*", "lm.llm.base.*lm_head*")
"""What is trained beside adapters: norms, word table and head."""


class MixtureTraining(nn.Module):
    """The language model with the frozen tokenizer and the grammar that make sequences of a source's documents."""

    def __init__(
        self, lm: InterleavedLM, tokenizer: SeedTokenizer, grammar: SeedGrammar, template: TemplateName
    ) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer.requires_grad_(False)
        self.grammar = grammar
        self.template: TemplateName = template

    def prepare(self, batch: SourceBatch) -> Collated:
        """Images become codes (those that are codes already stay), documents become rows of at most the source's length."""
        encoded = encode(self.tokenizer, batch.documents, replies="generation")
        # of a video only the caption is learned, of an instruction the reply; of everything else every word
        loss: LossKind = "reply" if batch.source.form in ("video", "instruction") else "all"
        sequences = [self.row(document, batch.source, loss) for document in encoded]
        return collated(sequences, pad_id=self.grammar.special.pad, device=self.lm.llm.device)

    def forward(self, batch: SourceBatch | Collated) -> Losses:
        """The mean over all words that are learned."""
        return self.lm.losses(batch if isinstance(batch, Collated) else self.prepare(batch))

    def row(self, document: Document, source: Source, loss: LossKind) -> Words:
        """A document's words, cut at the source's longest."""
        words = self.grammar.serialize(document, template=self.template, loss=loss)
        return Words(words.ids[: source.max_length], words.target[: source.max_length])


@dataclass(frozen=True)
class Parts:
    """What the language stages start from."""

    system: SeedConfig
    """The system whose language model is trained."""
    data: Path
    """JSON file that says where each set lies."""
    tokenizer: Path
    """Folder of a saved SEED, whose tokenizer makes the codes."""


def parts(system: SeedConfig, data: Path, tokenizer: Path | None, base: Path | None = None) -> Parts:
    """With `base`, the folder of the base language model in place of the system's own. Raises RebusError when no tokenizer
    was named."""
    if base is not None and isinstance(system.language, LanguageConfig):
        system = replace(system, language=replace(system.language, base=str(base)))
    if tokenizer is None:
        raise RebusError(
            "Training on a mixture turns images into codes, but no tokenizer was named. Give `--tokenizer FOLDER`, a saved "
            "SEED (`rebus convert` or `rebus pack` write one)."
        )
    return Parts(system, data, tokenizer)


def fresh(given: Parts, template: TemplateName) -> MixtureTraining:
    """The base language model with new rows and adapters, and the saved tokenizer."""
    tokenizer = read_seed_tokenizer(load_system(given.tokenizer))
    if not isinstance(given.system.language, LanguageConfig):
        raise RebusError(
            "A merged language model has no rows nor adapters to train, but this system's is one. Give the stage a "
            "`language` that names its exported folder as `base`."
        )
    lm, text = build_language(given.system.language, dtype=torch.float32)
    share_codebook(lm, tokenizer.quantizer.codebook_KC)
    return MixtureTraining(lm, tokenizer, SeedGrammar(text, given.system.grammar, tokenizer.source), template)


def merged(given: Parts, work: Path, template: TemplateName, *, tuned: bool) -> MixtureTraining:
    """The model that stage 3 left in `work`, its adapters and rows merged into the base; with `tuned` what was then tuned
    in full is laid over it. Raises RebusError when weights are missing or of another model."""
    module = fresh(given, template)
    lay(module, work / PRETRAINED)
    module.lm.llm.merge()
    if tuned:
        lay(module, work / TUNED)
    return module


def lay(module: nn.Module, folder: Path) -> None:
    """Fills a module's tensors of the names that a stage left in `folder`. Raises RebusError when one of them is not the
    module's, or there are none."""
    file = folder / "weights.safetensors"
    if not file.exists():
        raise RebusError(f"There are no weights in {folder}, from which this stage goes on. Train that stage first.")
    found, ours = load_file(file), module.state_dict()
    wrong = sorted(name for name, x in found.items() if name not in ours or ours[name].shape != x.shape)
    if wrong or not found:
        raise RebusError(
            f"The weights in {folder} are of another model: {len(wrong)} of their {len(found)} tensors do not fit "
            f"({', '.join(wrong[:3])}). Use the system that they were trained with."
        )
    module.load_state_dict(found, strict=False)


def read_seed_tokenizer(saved: SavedSystem) -> SeedTokenizer:
    """The tokenizer of a saved SEED, on the CPU; its codes carry its name and hash."""
    config = config_from_json(SeedConfig, saved.config)
    shared = saved.shared()
    with without_weights():
        tokenizer = SeedTokenizer(config.tokenizer, source=f"{saved.name} {saved.hash('tokenizer')}")
    load_module(tokenizer, *tokenizer_layers(saved, shared), dtype=torch.float32)
    return tokenizer.eval()


def batches(given: Parts, sources: Sequence[Source], *, batch: int | None, seed: int) -> SourceBatches:
    """The mixture, from the sets that the user has."""
    places = read_places(given.data, sources)
    return SourceBatches(
        sources, places, TEMPLATES, batch=batch, seed=seed, rank=parallel.rank(), world=parallel.world_size()
    )


def adapt(module: MixtureTraining, language: LanguageConfig, *, seed: int = 0) -> None:
    """New adapters on a merged model, of the size that stage 3's had."""
    add_lora(
        module.lm.llm,
        rank=language.lora_rank,
        alpha=language.lora_alpha,
        dropout=language.lora_dropout,
        targets=language.lora_targets,
        generator=torch.Generator().manual_seed(seed),
    )


def recorded(config: Any, given: Parts) -> dict[str, Any]:
    """A stage's config with the tokenizer and the base that it was given, as it is written beside the weights."""
    held = {field.name: getattr(config, field.name) for field in fields(config)}
    return held | {"system": given.system, "tokenizer": str(given.tokenizer.resolve())}


def merged_tensors(module: MixtureTraining) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Tensors of the language model, adapters and rows folded in (in place), under the names of a plain Hugging Face model;
    and its config."""
    base = module.lm.llm.merge()
    tensors = base.state_dict()
    if base.config.tie_word_embeddings:
        tensors = {name: x for name, x in tensors.items() if name != "lm_head.weight"}
    return tensors, base.config.to_dict()
