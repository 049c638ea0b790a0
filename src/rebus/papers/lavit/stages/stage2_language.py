"""LaVIT stage 2: the language model reads images as vectors and writes them as codes (2309.04669 section 3.2).

Next-token training on pairs with the image first (vectors in, the image's own codes and the caption to be predicted), with
the text first (codes), and on text. The language model, the rows of codes and a second merger learn; the tokenizer stays as
stage 1 left it. The paper: LLaMA-7B in full, 256 A100 for about 30 hours.

The mini begins the rows of codes, and the projector's linear layer, from the words that describe the pictures, trains adapters
in place of the whole model, and learns replies alone: with ten thousand documents nothing else would be learned.

    rebus train lavit.stage2_language --config mini --work state
    rebus train lavit.stage2_language --config paper --work state --data sets.json --tokenizer lavit --base llama

With `--data`, a JSON file that says where each set of the table in `language_training.py` lies, it is trained on these.

Dimension key: I images · N patches · K codes of the codebook · D language-model width
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rebus.checkpoint import config_from_json, load_system
from rebus.data.emoji import PRETRAIN as EMBEDDED
from rebus.data.emoji import EmojiDocuments
from rebus.data.loader import Addressed, Loader
from rebus.data.pictures import load_pictures
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig, ability_gates
from rebus.grammar import LossKind
from rebus.mini.frozen import Frozen, named_tokens, take
from rebus.mini.moving import Moved
from rebus.mini.named import load_named
from rebus.nn.caption_rows import linear_from_captions, rows_from_captions
from rebus.nn.name_rows import linear_from_names
from rebus.nn.new_rows import MarkRows, Rows
from rebus.nn.precision import BaseNumbers
from rebus.nn.word_readings import kept_parts, words_of_names
from rebus.papers.lavit.bank import bank_codes, bank_tokenizer, unpadded
from rebus.papers.lavit.build import read_tokenizer_part
from rebus.papers.lavit.language import LanguageConfig
from rebus.papers.lavit.language_training import (
    PRETRAIN,
    CodeSoftmax,
    LanguageTraining,
    begin,
    code_counts,
    go_on,
    mixture,
    trainable,
)
from rebus.papers.lavit.projectors import LavitInputProjector
from rebus.papers.lavit.selector import Selection
from rebus.papers.lavit.tokenizer import LavitTokenizer
from rebus.papers.lavit.variants import MINI, LavitConfig
from rebus.system import System
from rebus.train import Optim, Stage, parallel

NAME = "lavit.stage2_language"

WATCHED = {"caption": "caption", "draw": "draw"}
"""Kinds of documents that are asked where gates watch."""


@dataclass(frozen=True)
class Config:
    """Stage 2; the defaults are the paper's where it gives them."""

    system: LavitConfig = field(default_factory=lambda: LavitConfig(language=LanguageConfig()))
    """The system whose language model is trained."""
    visual_loss_in_image_text: bool = True
    """Whether the codes of an image that is read are learned too. The paper speaks of a loss "at each location for both
    modalities"; the code of its successor, Video-LaVIT, puts none there."""
    selection: Selection = "sample"
    """How patches are chosen while training; the successor's code draws them, as in stage 1."""
    row_start: Literal["random", "captions"] = "random"
    """How the rows of codes begin: as ordinary word vectors do (the authors' public answer), or from the words that describe
    pictures."""
    projector_start: Literal["random", "captions", "names", "aligned"] = "random"
    """How the projector's linear layer begins: as noise, from the words that describe pictures, or from their names; `aligned`:
    projector and adapters as `lavit.naming` left them."""
    loss: LossKind = "paper"
    """Which words are learned: `paper` all of them, `reply` what follows the first message."""
    mix: Mapping[str, float] = field(default_factory=lambda: EMBEDDED)
    """Share of each kind of document of the embedded data."""
    moved: float = 0.0
    """Embedded data only: share of the pictures that are read which are moved, turned and tinted a little, anew each time."""
    batch: int = 2048
    """Documents of one step of the embedded data; Video-LaVIT's."""
    source_batch: int | None = None
    """Real data only: documents of a batch; none: as many as the table says for its source."""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    code_softmax: CodeSoftmax = "vocabulary"
    """What the softmax of a code is over in the loss: the `vocabulary` (the paper), or the codes and the mark that ends an
    `image`, which are all that the grammar lets the model choose from there."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of the base model where adapters learn in its place; rows, adapters and the projector are float32."""
    lr: float = 1e-5
    """Peak rate of the language model; "a small rate is very important" (the authors' public answer)."""
    row_lr: float = 1e-5
    """Peak rate of the rows of new words, which belong to it."""
    visual_lr: float = 1e-4
    """Peak rate of the projector: the second merger, and the linear layer behind it."""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=30_000, warmup=2000, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, clip=1.0, accumulate=4
        )
    )
    """Optimiser and schedule, Video-LaVIT's."""
    gates: GateConfig = field(default_factory=GateConfig)
    """Embedded data only: what the run must not lose."""
    seed: int = 42
    """Order of the documents and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        system=MINI,
        visual_loss_in_image_text=False,
        selection="expected",
        row_start="captions",
        projector_start="aligned",
        loss="reply",
        mix={"caption": 0.44, "draw": 0.44, "album": 0.06, "two_pictures": 0.06},
        moved=0.6,
        batch=16,
        pack=128,
        base_dtype="auto",
        code_softmax="image",
        lr=1e-3,
        row_lr=2e-3,
        visual_lr=1e-3,
        optim=Optim(steps=280, warmup=0.04, min_lr_ratio=0.3, betas=(0.9, 0.95), weight_decay=0.01),
    ),
}


def saved_tokenizer(folder: Path | None) -> LavitTokenizer:
    """The tokenizer of a saved LaVIT, which must be named when real data is trained on. Raises RebusError otherwise."""
    if folder is None:
        raise RebusError(
            "Training on a mixture turns images into patches and codes, but no tokenizer was named. Give `--tokenizer "
            "FOLDER`, a saved LaVIT (`rebus convert` or `rebus pack` write one)."
        )
    saved = load_system(folder)
    shared = saved.shared()
    config = config_from_json(LavitConfig, saved.config)
    return read_tokenizer_part(config, saved, shared, f"{saved.name} {saved.hash('tokenizer')}").eval()


def recorded(config: Any, tokenizer: Path, base: Path | None) -> dict[str, Any]:
    """A stage's config with what it was given, as it is written beside the weights."""
    held = {field.name: getattr(config, field.name) for field in fields(config)}
    return held | {"tokenizer": str(tokenizer.resolve()), "base": None if base is None else str(base.resolve())}


def on_mixture(config: Config, data: Path, tokenizer: Path | None, base: Path | None) -> Stage:
    """Stage 2 on the sets that `data` names."""
    generator = torch.Generator().manual_seed(config.seed)
    module = begun(config, saved_tokenizer(tokenizer), generator, base)
    assert tokenizer is not None  # or there would be no module
    return Stage(
        name=NAME,
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=trainable(config.system, config.lr, config.row_lr, config.visual_lr),
        data=mixture(data, PRETRAIN, batch=config.source_batch, seed=config.seed),
        optim=config.optim,
        config=recorded(config, tokenizer, base),
        generators={"patches": generator},
    )


def begun(
    config: Config, tokenizer: LavitTokenizer, generator: torch.Generator, base: Path | None = None
) -> LanguageTraining:
    """The module of this stage at its beginning."""
    return begin(
        config.system,
        tokenizer,
        template="plain",
        loss=config.loss,
        pack=config.pack,
        visual_loss=config.visual_loss_in_image_text,
        selection=config.selection,
        base=base,
        base_dtype=config.base_dtype,
        code_softmax=config.code_softmax,
        generator=generator,
    )


def stage(
    config: Config, work: Path, data: Path | None = None, tokenizer: Path | None = None, base: Path | None = None
) -> Stage:
    """With `data` it needs a saved LaVIT as `tokenizer`, and a folder as `base` where the config's is not one; without,
    `work/emoji`, and the weights of mini.vision and both phases of stage 1 under `work`."""
    if data is not None:
        return on_mixture(config, data, tokenizer, base)
    generator = torch.Generator().manual_seed(config.seed)
    frozen = Frozen(work)
    module = begun(config, bank_tokenizer(config.system.tokenizer, frozen), generator, base)
    if config.row_start == "captions":
        start_rows(module, frozen)
    if config.projector_start == "aligned":
        go_on(module, work / "lavit.naming")
    elif config.projector_start != "random":
        start_projector(module, frozen, named=config.projector_start == "names")
    pictures = load_pictures(work / "emoji")
    documents: Addressed = EmojiDocuments(pictures, split="train", seed=config.seed, mix=config.mix)
    if config.moved:
        documents = Moved(documents, share=config.moved, seed=config.seed)

    def evaluate() -> Iterator[tuple[str, float]]:
        for split in ("train", "val"):
            for kind in ("caption", "draw"):
                mix = EmojiDocuments(pictures, split=split, seed=1, mix={kind: 1.0})
                yield f"{split}/{kind}", module([mix[i] for i in range(48)]).text.item()

    system = System(module.grammar, module.lm, module.tokenizer)
    return Stage(
        name=NAME,
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, documents: module.prepare(documents),
        trainable=trainable(config.system, config.lr, config.row_lr, config.visual_lr),
        data=Loader(documents, **parallel.sharded(config.batch)),
        evals=[evaluate],
        gates=ability_gates(config.gates, system, pictures, WATCHED, template="plain"),
        optim=config.optim,
        config=config,
        generators={"patches": generator},
    )


@torch.no_grad()
def start_rows(module: LanguageTraining, data: Frozen) -> None:
    """Sets the rows of codes from the single pictures of the bank."""
    singles = data.singles("train", len(data.bank("train")))
    captions = [data.bank("train").captions[i] for i in singles]
    codes = unpadded(bank_codes(data, "train", module.tokenizer)[singles])
    spelling, llm = module.grammar.config, module.lm.llm
    first = spelling.first_code - llm.words  # marks stand before the codes
    made = rows_from_captions(
        llm.base.get_input_embeddings().weight, module.grammar.text, code_counts(codes, spelling.codes), captions
    )
    assert llm.rows is not None and isinstance(llm.rows.input, Rows) and isinstance(llm.rows.output, Rows)
    for rows, begun_KD in zip((llm.rows.input, llm.rows.output), made, strict=True):
        if isinstance(rows, MarkRows):  # codes are written from words
            continue
        rows.weight_VD[first : first + spelling.codes] = begun_KD


@torch.no_grad()
def start_projector(module: LanguageTraining, data: Frozen, *, named: bool, most: int = 8192) -> None:
    """Sets the projector's linear layer, from `most` pictures of one thing with their captions, or, where `named`, from all
    that training names, as what reads words is then too; its merger is as the tokenizer's."""
    projector, text = module.lm.input_projector, module.grammar.text
    assert isinstance(projector, LavitInputProjector)
    table_VD = module.lm.llm.base.get_input_embeddings().weight
    if named:
        held = load_named(data.work, "train")
        features = (data.vision.vit(held.pixels(torch.from_numpy(i))) for i in parts(np.arange(len(held))))
        tokens_TC, lengths = read(module, projector, features)
        x_ITC = pad_sequence(list(tokens_TC.split(lengths)), batch_first=True)
        real_IT = torch.arange(x_ITC.shape[1]) < torch.tensor(lengths)[:, None]
        generator = torch.Generator().manual_seed(0)
        made = linear_from_names(table_VD, text, x_ITC, real_IT, held.name_N, held.names, generator=generator)
    else:
        singles = data.singles("train", most)
        features = (data.rows("train", i, "tokens")[0] for i in parts(singles))
        tokens_TC, lengths = read(module, projector, features)
        captions = [data.bank("train").captions[i] for i in singles]
        made = linear_from_captions(table_VD, text, tokens_TC, lengths, captions)
    projector.proj.weight.copy_(made[0])
    projector.proj.bias.copy_(made[1])
    if named and projector.words is not None:
        start_words(module, data)


@torch.no_grad()
def start_words(module: LanguageTraining, data: Frozen, *, copies: int = 2) -> None:
    """Fits what reads words of kept patches to the names of all pictures that training names, as they are and moved."""
    projector = module.lm.input_projector
    assert isinstance(projector, LavitInputProjector) and projector.words is not None
    words = projector.words
    tokens, name_I, names = named_tokens(data, "train")
    count = copies * len(load_named(data.work, "train"))
    rows = []
    for i in parts(np.arange(count)):
        x_INC = take(tokens, i)[:, 1:]
        keep_IN = module.tokenizer.keep(x_INC)
        rows.append(kept_parts(projector.merger.kept(x_INC, keep_IN), keep_IN, words.config.grid))
    aim_QK = words_of_names(module.grammar.text, names, words.config.words)
    words.fit(torch.cat(rows), name_I[:count], aim_QK, generator=torch.Generator().manual_seed(0))


def parts(i: np.ndarray, size: int = 256) -> list[np.ndarray]:
    """Indices in parts of about `size`."""
    return np.array_split(i, -(-len(i) // size))


def read(
    module: LanguageTraining, projector: LavitInputProjector, features: Iterable[Tensor]
) -> tuple[Tensor, list[int]]:
    """What the projector's merger makes of pictures, of which batches of features [I, N + 1, C] are given: all kept tokens in
    order, [T, C], and how many each picture has."""
    rows, lengths = [], []
    for x_ISC in features:
        keep_IN = module.tokenizer.keep(x_ISC[:, 1:])
        rows.append(projector.merger.kept(x_ISC[:, 1:], keep_IN))
        lengths += keep_IN.sum(1).tolist()
    return torch.cat(rows), lengths
