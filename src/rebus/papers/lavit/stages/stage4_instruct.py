"""LaVIT stage 4: instruction tuning. NOT in the paper (2309.04669 ends with pre-training): it is the successor's,
Video-LaVIT's (2402.03161), whose loss falls on replies alone and whose images go in as vectors that nothing is asked of.

Goes on from stage 2. The mini learns to chat, in the template that its base model was published with.

    rebus train lavit.stage4_instruct --config mini --work state
    rebus train lavit.stage4_instruct --config paper --work state --data sets.json --tokenizer lavit --base llama

With `--data`, a JSON file that says where LLaVA's instructions lie, it is trained on these.

Dimension key: none; tensors are made by the language model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rebus.data.emoji import INSTRUCT as EMBEDDED
from rebus.data.emoji import EmojiDocuments
from rebus.data.loader import Addressed, Loader
from rebus.data.pictures import load_pictures
from rebus.evals.battery import GateConfig, ability_gates
from rebus.mini.frozen import Frozen
from rebus.mini.moving import Moved
from rebus.mini.replay import WithReplies, base_replies
from rebus.nn.precision import BaseNumbers
from rebus.papers.lavit.bank import bank_tokenizer
from rebus.papers.lavit.language import LanguageConfig
from rebus.papers.lavit.language_training import (
    INSTRUCT,
    CodeSoftmax,
    LanguageTraining,
    begin,
    go_on,
    mixture,
    trainable,
)
from rebus.papers.lavit.selector import Selection
from rebus.papers.lavit.stages import stage2_language
from rebus.papers.lavit.stages.stage2_language import recorded, saved_tokenizer
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.system import System
from rebus.train import Optim, Stage, parallel

NAME = "lavit.stage4_instruct"

WATCHED = {"caption": "describe", "draw": "request"}
"""Kinds of documents that are asked where gates watch."""


@dataclass(frozen=True)
class Config:
    """Stage 4. The paper has none; Video-LaVIT does not publish the numbers of its own, so they are stage 2's with the
    batch, the rate and the one epoch of LLaVA-1.5 (2310.03744), whose instructions it takes."""

    system: LavitConfig = field(default_factory=lambda: LavitConfig(language=LanguageConfig()))
    """The system whose language model is trained."""
    selection: Selection = "sample"
    """How patches are chosen while training."""
    mix: Mapping[str, float] = field(default_factory=lambda: EMBEDDED)
    """Share of each kind of document of the embedded data."""
    moved: float = 0.0
    """Embedded data only: share of the pictures that are read which are moved, turned and tinted a little, anew each time."""
    replies: float = 0.0
    """Embedded data only: share of documents that are plain questions with the base model's own replies, so that it keeps
    its words."""
    batch: int = 128
    """Documents of one step of the embedded data."""
    source_batch: int | None = None
    """Real data only: documents of a batch; none: as many as the table says for its source."""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    code_softmax: CodeSoftmax = "vocabulary"
    """What the softmax of a code is over in the loss: the `vocabulary` (the paper), or the codes and the mark that ends an
    `image`, which are all that the grammar lets the model choose from there."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of the base model where adapters learn in its place; rows, adapters and the projector are float32."""
    lr: float = 2e-5
    """Peak rate of the language model."""
    row_lr: float = 2e-5
    """Peak rate of the rows of new words."""
    visual_lr: float = 2e-5
    """Peak rate of the projector."""
    optim: Optim = field(
        default_factory=lambda: Optim(steps=5200, warmup=0.03, betas=(0.9, 0.95), eps=1e-6, clip=1.0, accumulate=8)
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
        selection="expected",
        mix={"describe": 0.48, "request": 0.3, "question": 0.1, "chat": 0.06, "album": 0.06},
        moved=0.6,
        replies=0.05,
        batch=16,
        pack=128,
        base_dtype="auto",
        code_softmax="image",
        lr=8e-4,
        row_lr=1e-3,
        visual_lr=5e-4,
        optim=Optim(steps=600, warmup=0.03, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    ),
}


def stage(
    config: Config, work: Path, data: Path | None = None, tokenizer: Path | None = None, base: Path | None = None
) -> Stage:
    """Needs what stage 2 needs, and its weights under `work`."""
    generator = torch.Generator().manual_seed(config.seed)
    if data is not None:
        module = begun(config, work, saved_tokenizer(tokenizer), generator, base)
        assert tokenizer is not None  # or there would be no module
        return Stage(
            name=NAME,
            module=module,
            step=lambda module, rows: module(rows),
            prepare=lambda module, batch: module.prepare(batch),
            trainable=trainable(config.system, config.lr, config.row_lr, config.visual_lr),
            data=mixture(data, INSTRUCT, batch=config.source_batch, seed=config.seed),
            optim=config.optim,
            config=recorded(config, tokenizer, base),
            generators={"patches": generator},
        )
    module = unlearned(config, bank_tokenizer(config.system.tokenizer, Frozen(work)), generator, base)
    # before stage 2's weights are read: until then it is the base model
    replies = base_replies(work, System(module.grammar, module.lm)) if config.replies else []
    go_on(module, work / stage2_language.NAME)
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
        name=NAME,
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, documents: module.prepare(documents),
        trainable=trainable(config.system, config.lr, config.row_lr, config.visual_lr),
        data=Loader(documents, **parallel.sharded(config.batch)),
        evals=[evaluate],
        gates=ability_gates(config.gates, system, pictures, WATCHED, template="chat"),
        optim=config.optim,
        config=config,
        generators={"patches": generator},
    )


def begun(
    config: Config, work: Path, tokenizer: LavitTokenizer, generator: torch.Generator, base: Path | None
) -> LanguageTraining:
    """The module of stage 2 as stage 2 left it, in the chat template; nothing is learned of what the user says."""
    module = unlearned(config, tokenizer, generator, base)
    go_on(module, work / stage2_language.NAME)
    return module


def unlearned(
    config: Config, tokenizer: LavitTokenizer, generator: torch.Generator, base: Path | None
) -> LanguageTraining:
    """The same before it has learned anything."""
    return begin(
        config.system,
        tokenizer,
        template="chat",
        loss="reply",
        pack=config.pack,
        visual_loss=False,
        selection=config.selection,
        base=base,
        base_dtype=config.base_dtype,
        code_softmax=config.code_softmax,
        generator=generator,
    )
