"""SEED stage 4: instruction tuning; the language model answers in words, pictures or both (SEED-LLaMA section 3.2).

LoRA on the model of stage 3, loss on the replies alone. The paper: 18 sets of instructions, 32 A100-80G for 16 hours.
The mini goes on with stage 3's adapters, in the chat template that its base model was published with.

    rebus train seed.stage4_instruct --config mini --work state
    rebus train seed.stage4_instruct --config paper --work state --data sets.json --tokenizer weights/seed --base vicuna

With `--data`, a JSON file that says where each set of the table in `mixture.py` lies, it is trained on these: stage 3's
model, merged and where that was done tuned in full, with new adapters.

Dimension key: none; tensors are made in stage 3's module
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from rebus.data.emoji import INSTRUCT, EmojiDocuments
from rebus.data.loader import Addressed, Loader
from rebus.data.pictures import load_pictures
from rebus.evals.battery import GateConfig, ability_gates
from rebus.mini.moving import Moved
from rebus.mini.replay import WithReplies, base_replies
from rebus.nn.precision import BaseNumbers
from rebus.papers.seed import tuning
from rebus.papers.seed.language import LanguageConfig
from rebus.papers.seed.mixture import INSTRUCT as SOURCES
from rebus.papers.seed.rates import code_rates, row_rates
from rebus.papers.seed.stages.stage3_pretrain import language_weights, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.system import System
from rebus.train import Optim, Stage, Trainable, parallel

WATCHED = {"caption": "describe", "draw": "request"}
"""Kinds of documents that are asked where gates watch."""


@dataclass(frozen=True)
class Config:
    """Stage 4; the defaults are the paper's."""

    system: SeedConfig = field(default_factory=SeedConfig)
    """The system whose language model is trained."""
    mix: Mapping[str, float] = field(default_factory=lambda: INSTRUCT)
    """Share of each kind of document of the embedded data."""
    moved: float = 0.0
    """Embedded data only: share of the pictures that are read which are moved, turned and tinted a little, anew each time."""
    replies: float = 0.0
    """Embedded data only: share of documents that are plain questions with the base model's own replies, so that it keeps
    its words."""
    batch: int = 128
    """Documents of one step."""
    source_batch: int | None = None
    """Real data only: documents of a batch; none: as many as the table says for its source."""
    code_softmax: Literal["vocabulary", "position"] = "vocabulary"
    """What the softmax of a code is over in the loss: the `vocabulary` (the papers), or the codes of its own `position`, which
    are all that the grammar lets the model choose from; for codes whose places have codes of their own."""
    first_code_weight: float = 1.0
    """How many times as much an image's first code counts in the loss as its last, the others in between and 1 on the
    average; for codes of which the first say the most. (The papers: all alike.)"""
    word_weight: float = 1.0
    """How many times as much a word of text counts in the loss as a code on the average. (The papers: all alike.)"""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of the frozen base model. Rows and adapters that learn are float32 in both."""
    lr: float = 1e-4
    """Peak learning rate of the adapters."""
    row_lr: float = 1e-4
    """Peak learning rate of the rows of new words."""
    read_row_lr: float | None = None
    """Peak learning rate of those of them that are read; none: `row_lr`. Rows that are read as running sums hang together, and
    fast changes of each alone undo what they say together."""
    word_lr: float = 1e-6
    """Peak learning rate of what reads codes as words and draws from words, where the system has that (the mini)."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=50_000, warmup=0.07, min_lr_ratio=0.1, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.05, clip=1.0
        )
    )
    """Optimiser and schedule."""
    gates: GateConfig = field(default_factory=GateConfig)
    """Embedded data only: what the run must not lose."""
    seed: int = 42
    """Order of the documents."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        system=MINI,
        mix={"describe": 0.4, "request": 0.38, "question": 0.1, "chat": 0.06, "album": 0.06},
        replies=0.05,
        first_code_weight=6.0,
        word_weight=3.0,
        code_softmax="position",
        moved=0.6,
        batch=16,
        pack=128,
        base_dtype="auto",
        lr=6e-4,
        row_lr=1e-3,
        read_row_lr=1e-4,
        optim=Optim(steps=2400, warmup=0.03, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    ),
}


def on_mixture(config: Config, work: Path, data: Path, tokenizer: Path | None, base: Path | None) -> Stage:
    """Stage 4 on the sets that `data` names."""
    given = tuning.parts(config.system, data, tokenizer, base)
    tuned = (work / tuning.TUNED / "weights.safetensors").exists()
    module = tuning.merged(given, work, "chat", tuned=tuned)
    language = config.system.language
    assert isinstance(language, LanguageConfig)  # others were refused when the model was built
    tuning.adapt(module, language, seed=config.seed)
    patterns = ("lm.llm.*lora_*", *tuning.IN_FULL)
    return Stage(
        name="seed.stage4_instruct",
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=[Trainable(pattern, config.lr) for pattern in patterns],
        data=tuning.batches(given, SOURCES, batch=config.source_batch, seed=config.seed),
        optim=config.optim,
        config=tuning.recorded(config, given),
    )


def stage(
    config: Config, work: Path, data: Path | None = None, tokenizer: Path | None = None, base: Path | None = None
) -> Stage:
    """Needs what stage 3 needs, and its weights under `work`."""
    if data is not None:
        return on_mixture(config, work, data, tokenizer, base)
    torch.manual_seed(config.seed)
    module = training(
        config.system,
        work,
        template="chat",
        loss="reply",
        pack=config.pack,
        base_dtype=config.base_dtype,
        first_code_weight=config.first_code_weight,
        word_weight=config.word_weight,
        code_softmax=config.code_softmax,
    )
    # before stage 3's weights are read: until then it is the base model
    replies = base_replies(work, System(module.grammar, module.lm)) if config.replies else []
    started = language_weights(work / "seed.stage3_pretrain")
    left = set(started) ^ {name for name in module.lm.llm.state_dict() if name in started}
    module.lm.llm.load_state_dict(started, strict=False)
    if left:
        raise ValueError(f"Stage 3's weights are of another model: {sorted(left)[:3]}.")
    pictures = load_pictures(work / "emoji")
    documents: Addressed = EmojiDocuments(pictures, split="train", seed=config.seed, mix=config.mix)
    if config.moved:
        documents = Moved(documents, share=config.moved, seed=config.seed)
    if replies:
        documents = WithReplies(documents, replies, share=config.replies, seed=config.seed)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            for kind in ("describe", "request", "question"):
                mix = EmojiDocuments(pictures, split=split, seed=1, mix={kind: 1.0})
                yield f"{split}/{kind}", module([mix[i] for i in range(32)]).text.item()

    system = System(module.grammar, module.lm, module.tokenizer)
    return Stage(
        name="seed.stage4_instruct",
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, documents: module.prepare(documents),
        trainable=[
            *code_rates(module.lm.llm, config.lr, config.word_lr),
            *row_rates(config.row_lr, config.read_row_lr),
            Trainable("lm.llm.*lora_*", config.lr),
        ],
        data=Loader(documents, **parallel.sharded(config.batch)),
        evals=[evaluate],
        gates=ability_gates(config.gates, system, pictures, WATCHED, template="chat"),
        optim=config.optim,
        config=config,
    )
