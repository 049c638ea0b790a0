"""SEED-X is tuned to follow instructions: one adapter for each speciality, on one base (section 3.3, appendix B).

The pre-trained language model, its LoRA folded in, gets a new LoRA; projectors and norms go on learning with it. What a
run leaves is a small folder, which `rebus pack` puts beside the base: `load("seed_x:mini", adapter="edit")`.

    rebus train seed_x.instruct --config mini --speciality edit --work state --out state/seed_x.instruct.edit
    rebus train seed_x.instruct --config paper --speciality chat --data sets.json --base weights/seed_x-17b --work state --out state/seed_x.instruct.chat

`--base` is a saved SEED-X, by default the embedded `seed_x-mini`; with `--data`, a JSON file that says where each set of the
speciality's table in `mixture.py` lies, the adapter is tuned on these, and on the embedded data without.

What the published schedule does otherwise, each behind a setting: see `pretrain.py`; further, the words that a drawing is
introduced with are not learned (`responses="unlearned"`).

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from rebus.checkpoint import config_from_json, load_system
from rebus.data.loader import Addressed, Loader
from rebus.data.source_batches import SourceBatches, read_places
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig, ability_gates
from rebus.grammar import Template
from rebus.lm import InterleavedLM
from rebus.mini.replay import WithReplies, base_replies
from rebus.nn.precision import BaseNumbers, dtype_of_base
from rebus.packages import embedded as embedded_weights
from rebus.papers.seed_x import embedded
from rebus.papers.seed_x.build import build
from rebus.papers.seed_x.grammar import SeedXGrammar
from rebus.papers.seed_x.language import LanguageConfig, LoraConfig, base_language
from rebus.papers.seed_x.language_training import NORMS, LanguageTraining, Responses, TooLong, fitted_parts, trainable
from rebus.papers.seed_x.mixture import INSTRUCT
from rebus.papers.seed_x.speciality import Decoder, Speciality, begin_lora
from rebus.papers.seed_x.spelling import INSTRUCT as CHAT_TEMPLATE
from rebus.papers.seed_x.stages.pretrain import figures
from rebus.papers.seed_x.templates import TEMPLATES
from rebus.papers.seed_x.tokenizer import SeedXTokenizer
from rebus.papers.seed_x.variants import SeedXConfig
from rebus.papers.seed_x.views import COMPREHENSION, EDIT, Grid
from rebus.system import System
from rebus.train import Evaluation, Gate, Optim, Stage, parallel

NAME = "seed_x.instruct"
Name = Literal["chat", "edit", "story", "layout", "try_on"]
GRIDS: Mapping[str, tuple[Grid, ...]] = {"chat": COMPREHENSION, "layout": COMPREHENSION}
"""Of each speciality the grids that its images are cut by; those that are not named read images in one tile."""
DECODERS: Mapping[str, Decoder] = {"edit": "second", "try_on": "second"}
"""Of each speciality the stage of the image decoder that draws; of those that are not named the first."""


@dataclass(frozen=True)
class Config:
    """Instruction tuning; the defaults are the paper's and the published code's."""

    speciality: Name = "chat"
    """What the adapter is for."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """The new LoRA."""
    template: Template | None = CHAT_TEMPLATE
    """How documents are laid out; none: as the base lays out a chat."""
    mix: Mapping[str, float] | None = None
    """Embedded data only: share of each kind of document; none: the speciality's own."""
    moved: float = 0.0
    """Embedded data and the speciality `chat` only: share of the pictures that are read which are moved, turned and tinted a
    little, anew each time. (What others draw shows what they read.)"""
    replies: float = 0.0
    """Embedded data and the speciality `chat` only: share of documents that are plain questions with the base language
    model's own replies, so that it keeps its words."""
    batch: int = 16
    """Embedded data only: documents of one step."""
    source_batch: int | None = None
    """A user's sets only: documents of a batch; none: as many as the table says for its source."""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    one_view: float = 0.0
    """Share of pictures that are read whole although they would be cut into views."""
    too_long: TooLong = "drop"
    """What becomes of a document that does not fit: dropped and counted, or (`flip`) a caption is read off its picture."""
    responses: Responses = "learned"
    """Whether the words before a drawing are learned in sets of drawings; the published loader does not learn them."""
    remember: int = 0
    """Pictures whose features are kept in memory."""
    measured: int = 16
    """Embedded data only: documents of each kind that are measured."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of what is frozen of the base model. All that learns is float32 in both."""
    lr: float = 1e-4
    """Peak learning rate."""
    in_full: tuple[str, ...] = NORMS
    """Patterns of the base model's own parameters that are trained too. (The published code trains word table and head
    as well, with which an adapter is no longer small: add `lm.llm.base.*embed_tokens*` and `lm.llm.base.*lm_head*`.)"""
    full_lr: float | None = None
    """Peak learning rate of these; none: as the adapters. Where adapters learn fast, norms would be worn down: a small
    model's are of a size that a hundred steps at such a rate make anew."""
    way_in_lr: float | None = None
    """Peak learning rate of the way in; none: as the adapters; 0: it is the base's own, and an adapter does not hold it."""
    way_out_lr: float | None = None
    """The same of the way out."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=20_000,
            warmup=500,
            min_lr_ratio=0.05,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.05,
            clip=1.0,
            accumulate=2,
        )
    )
    """Optimiser and schedule."""
    gates: GateConfig = field(default_factory=GateConfig)
    """Embedded data only: what the run must not lose of captions and plain text."""
    seed: int = 42
    """Order of the documents and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        lora=LoraConfig(rank=8, alpha=16, dropout=0.0, targets=("q_proj", "v_proj")),
        template=None,
        batch=16,
        pack=128,
        one_view=0.5,
        remember=4096,
        base_dtype="auto",
        lr=1e-3,
        full_lr=5e-5,
        way_in_lr=0.0,
        moved=0.6,
        replies=0.05,
        optim=Optim(steps=500, warmup=0.04, min_lr_ratio=0.05, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
    ),
}


def stage(config: Config, work: Path, data: Path | None = None, base: Path | None = None) -> Stage:
    """Needs the saved SEED-X `base`; without `data`, `work/emoji` too. Raises RebusError for a base that is none."""
    module, speciality = begin(config, base)
    evals: list[Evaluation] = []
    gates: list[Gate] = []
    if data is not None:
        sources = INSTRUCT[config.speciality]
        batches: SourceBatches | Loader = SourceBatches(
            sources,
            read_places(data, sources),
            TEMPLATES,
            batch=config.source_batch,
            seed=config.seed,
            rank=parallel.rank(),
            world=parallel.world_size(),
        )
    else:
        mix = embedded.INSTRUCT[config.speciality] if config.mix is None else config.mix
        pictures, lines = embedded.read_embedded(work)
        chats = config.speciality == "chat"
        moved = config.moved if chats else 0.0
        mixture: Addressed = embedded.documents(pictures, lines, "train", config.seed, mix, moved=moved)
        if chats and config.replies:
            replies = base_replies(work, unlearned(module, base))
            mixture = WithReplies(mixture, replies, share=config.replies, seed=config.seed)
        batches = Loader(mixture, **parallel.sharded(config.batch))

        def evaluate() -> Iterator[tuple[str, float]]:
            for split in ("train", "val"):
                for kind in mix:
                    some = embedded.documents(pictures, lines, split, 1, {kind: 1.0})
                    yield from figures(module, f"{split}/{kind}", [some[i] for i in range(config.measured)])

        evals = [evaluate]
        system = System(module.grammar, module.lm, module.tokenizer)
        gates = ability_gates(config.gates, system, pictures, {"caption": "describe"}, template="chat")
    return Stage(
        name=f"{NAME}.{config.speciality}",
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=trainable(
            config.lr,
            None,
            config.in_full,
            config.full_lr,
            # the base's own: what an image shows is the same for every speciality
            fitted_parts(module.lm, 0.0),
            config.way_in_lr,
            config.way_out_lr,
        ),
        data=batches,
        evals=evals,
        gates=gates,
        optim=config.optim,
        config={"stage": config, "speciality": speciality},
        generators={"choices": module.generator},
    )


def begin(config: Config, base: Path | None) -> tuple[LanguageTraining, Speciality]:
    """The base with a new LoRA that says nothing yet, and what the adapter will say of itself."""
    saved = load_system(base or embedded_weights("seed_x-mini"))
    paper, _, variant = saved.name.partition(":")
    if paper != "seed_x" or "+" in variant or "lm" not in saved.files:
        raise RebusError(
            f"{saved.folder} holds {saved.name}, but instruction tuning starts from a saved SEED-X with its language "
            "model. Name one with `--base FOLDER` (`rebus pack` or `rebus convert` write one)."
        )
    system = config_from_json(SeedXConfig, saved.config)
    dtype = dtype_of_base(config.base_dtype)
    made = build(system, saved.folder, ("tokenizer", "lm"), "cpu", dtype)
    lm, tokenizer, grammar = made.lm, made.tokenizer, made.grammar
    assert isinstance(tokenizer, SeedXTokenizer) and isinstance(grammar, SeedXGrammar)
    lm.llm.fold_lora()
    begin_lora(lm, config.lora, torch.Generator().manual_seed(config.seed))
    template = grammar.config.chat if config.template is None else config.template
    if DECODERS.get(config.speciality) == "second":
        template = replace(template, draw="")  # an instruction stands alone
    speciality = Speciality(
        config.speciality,
        saved.name,
        saved.hash("lm"),
        config.lora,
        template,
        GRIDS.get(config.speciality, EDIT),
        DECODERS.get(config.speciality, "first"),
    )
    module = LanguageTraining(
        lm,
        tokenizer.with_grids(speciality.grids),
        SeedXGrammar(grammar.text, replace(grammar.config, chat=template), grammar.source),
        template="chat",
        pack=config.pack,
        one_view=config.one_view,
        too_long=config.too_long,
        responses=config.responses,
        remember=config.remember,
        generator=torch.Generator().manual_seed(config.seed),
    )
    return module, speciality


def unlearned(module: LanguageTraining, base: Path | None) -> System:
    """The base language model as it was before it learned of pictures. Raises RebusError for a base whose language model
    is merged."""
    system = config_from_json(SeedXConfig, load_system(base or embedded_weights("seed_x-mini")).config)
    if not isinstance(system.language, LanguageConfig):
        raise RebusError(
            "Plain replies are those of the language model that the base was made from, but this base holds a merged one. "
            "Leave `replies` at 0."
        )
    llm, _ = base_language(replace(system.language, lora=None), dtype=module.lm.llm.dtype)
    return System(module.grammar, InterleavedLM(llm))


def speciality_of(folder: Path, held: Any) -> Speciality:
    """What a run in `folder` says of its adapter, from its `config.json`. Raises RebusError when that is not there."""
    found = held.get("config", {}).get("speciality") if isinstance(held, dict) else None
    if not isinstance(found, dict):
        raise RebusError(f"{folder} has no config.json that says what its adapter is for. Train it again.")
    return config_from_json(Speciality, found)
