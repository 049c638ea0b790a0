"""SEED stage 3: the language model learns to read and write images among words (SEED-LLaMA section 3.2).

Next-token training on captions in both directions and on interleaved documents. The paper: Vicuna-7B or LLaMA-2-13B
with LoRA on seven projections, embeddings, head and norms trained in full; 64 A100-40G for 144 hours.

The mini begins the rows of codes from the words that name and describe the pictures in which they occur: with ten
thousand documents, against a hundred million in the paper, rows that begin as noise would not be learned. In SEED v1,
whose input rows are one linear layer of the codebook, that layer begins as the one that comes nearest to them.

    rebus train seed.stage3_pretrain --config mini --work state
    rebus train seed.stage3_pretrain --config v1-mini --work state/v1 --out state/v1/seed.stage3_pretrain
    rebus train seed.stage3_pretrain --config paper --work state --data sets.json --tokenizer weights/seed --base vicuna

With `--data`, a JSON file that says where each set of the table in `mixture.py` lies, it is trained on these.

Dimension key: I images · N codes of an image · K codes of the codebook
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.data.emoji import PRETRAIN, EmojiDocuments
from rebus.data.loader import Addressed, Loader
from rebus.data.pictures import load_pictures
from rebus.document import Document
from rebus.errors import RebusError
from rebus.evals.battery import GateConfig, ability_gates
from rebus.grammar import LossKind, TemplateName
from rebus.lm import InterleavedLM, Losses
from rebus.mini.frozen import Frozen
from rebus.mini.moving import Moved
from rebus.mini.named_stage import read_stage
from rebus.nn.caption_rows import rows_from_captions
from rebus.nn.name_rows import rows_from_names
from rebus.nn.new_rows import CodebookRows, MarkRows, Rows
from rebus.nn.precision import BaseNumbers, dtype_of_base
from rebus.nn.written_codes import CodePositions
from rebus.papers.seed import tuning
from rebus.papers.seed.bank import bank_codes, named_codes, read_vision
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import LanguageConfig, build_language, share_codebook
from rebus.papers.seed.mixture import PRETRAIN as SOURCES
from rebus.papers.seed.rates import code_rates, row_rates
from rebus.papers.seed.spelling import SeedGrammarConfig
from rebus.papers.seed.stages.stage2_codebook import load_tokenizer
from rebus.papers.seed.tokenizer import SeedTokenizer
from rebus.papers.seed.variants import MINI, V1_MINI, SeedConfig
from rebus.sequence import Collated, collated
from rebus.system import System, encode
from rebus.train import Optim, Stage, Trainable, parallel

WATCHED = {"caption": "caption", "draw": "draw"}
"""Kinds of documents that are asked where gates watch."""


@dataclass(frozen=True)
class Config:
    """Stage 3; the defaults are the paper's."""

    system: SeedConfig = field(default_factory=SeedConfig)
    """The system whose language model is trained."""
    row_start: Literal["random", "captions", "names", "aligned"] = "random"
    """How the rows of codes begin: as noise (the paper), from the words of the `captions` of their pictures, or the input
    rows from the `names` of these, by contrast. (Which of 1,413 names is meant, by the sum of a picture's rows: `captions`
    83 % of trained pictures and 5 % of 144 others, `names` 86 % and 26 %.) `aligned`: rows and adapters as
    `seed.naming` left them."""
    template: TemplateName = "plain"
    """How documents are laid out."""
    loss: LossKind = "paper"
    """Which words are learned: `paper` all of them, `reply` what follows the first message."""
    mix: Mapping[str, float] = field(default_factory=lambda: PRETRAIN)
    """Share of each kind of document of the embedded data."""
    moved: float = 0.0
    """Embedded data only: share of the pictures that are read which are moved, turned and tinted a little, anew each time."""
    batch: int = 116
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
    """How many times as much a word of text counts in the loss as a code on the average: where images are 32 codes and answers
    ten words, reading is otherwise a small part of what is learned. (The papers: all alike.)"""
    pack: int | None = None
    """Words of a packed row, longer documents have rows of their own length; none: a row for each document, padded."""
    base_dtype: BaseNumbers = "fp32"
    """Number format of the frozen base model. Collated and adapters that learn are float32 in both."""
    lr: float = 1.5e-4
    """Peak learning rate of the adapters."""
    row_lr: float = 1.5e-4
    """Peak learning rate of the rows of new words."""
    read_row_lr: float | None = None
    """Peak learning rate of those of them that are read; none: `row_lr`. Rows that are read as running sums hang together, and
    fast changes of each alone undo what they say together."""
    word_lr: float = 1e-6
    """Peak learning rate of what reads codes as words and draws from words, where the system has that (the mini): so low that it
    stays as it was fitted."""
    in_full: tuple[str, ...] = ("lm.llm.base.*norm*", "lm.llm.base.*embed_tokens*", "lm.llm.base.lm_head*")
    """Patterns of the base model's own parameters that are trained beside the adapters, at their rate: norms, word table
    and head. (The mini leaves them as they are.)"""
    optim: Optim = field(
        default_factory=lambda: Optim(
            steps=30_000,
            warmup=0.03,
            min_lr_ratio=0.05,
            betas=(0.9, 0.95),
            eps=1e-5,
            weight_decay=0.05,
            clip=1.0,
            accumulate=4,
        )
    )
    """Optimiser and schedule."""
    gates: GateConfig = field(default_factory=GateConfig)
    """Embedded data only: what the run must not lose."""
    seed: int = 42
    """Order of the documents and initial weights."""


CONFIGS = {
    "paper": Config(),
    "mini": Config(
        system=MINI,
        row_start="aligned",
        loss="reply",
        # reading has begun, drawing has not
        mix={"caption": 0.28, "draw": 0.6, "album": 0.06, "two_pictures": 0.06},
        moved=0.6,
        batch=16,
        pack=128,
        first_code_weight=6.0,
        code_softmax="position",
        base_dtype="auto",
        lr=5e-4,
        row_lr=2e-3,
        read_row_lr=1e-4,
        in_full=(),
        optim=Optim(steps=150, warmup=0.04, min_lr_ratio=0.3, betas=(0.9, 0.95), weight_decay=0.01),
    ),
    "v1-mini": Config(
        system=V1_MINI,
        row_start="names",
        loss="reply",
        # pairs, as in the paper; a few wishes and questions (our choice), as there is no stage 4 that would bring them
        mix={"caption": 0.35, "draw": 0.35, "request": 0.2, "describe": 0.1},
        moved=0.6,
        batch=16,
        pack=128,
        first_code_weight=6.0,
        code_softmax="position",
        base_dtype="auto",
        lr=1e-3,
        row_lr=2e-3,
        in_full=(),
        optim=Optim(steps=400, warmup=0.04, min_lr_ratio=0.1, betas=(0.9, 0.95), weight_decay=0.01),
    ),
}


class LanguageTraining(nn.Module):
    """The language model with the frozen tokenizer and the grammar that make sequences of documents."""

    def __init__(
        self,
        lm: InterleavedLM,
        tokenizer: SeedTokenizer,
        grammar: SeedGrammar,
        *,
        template: TemplateName,
        loss: LossKind,
        pack: int | None,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.tokenizer = tokenizer.requires_grad_(False)
        self.grammar = grammar
        self.template: TemplateName = template
        self.loss: LossKind = loss
        self.pack = pack

    def prepare(self, documents: list[Document]) -> Collated:
        """Images become codes, documents become sequences, sequences rows."""
        encoded = encode(self.tokenizer, documents, replies="generation")
        sequences = [self.grammar.serialize(d, template=self.template, loss=self.loss) for d in encoded]
        return collated(
            sequences,
            pack=self.pack,
            least=min(2, parallel.world_size()),
            pad_id=self.grammar.special.pad,
            device=self.lm.llm.device,
        )

    def forward(self, batch: list[Document] | Collated) -> Losses:
        """The mean over all words that are learned."""
        return self.lm.losses(batch if isinstance(batch, Collated) else self.prepare(batch))


def training(
    config: SeedConfig,
    work: Path,
    *,
    template: TemplateName,
    loss: LossKind,
    pack: int | None,
    base_dtype: BaseNumbers = "fp32",
    first_code_weight: float = 1.0,
    word_weight: float = 1.0,
    code_softmax: Literal["vocabulary", "position"] = "vocabulary",
) -> LanguageTraining:
    """The language model, its own parts fresh, with the tokenizer of stages 1 and 2."""
    data = Frozen(work)
    stages = [work / f"seed.{name}" / "weights.safetensors" for name in ("stage1_qformer", "stage2_codebook")]
    tokenizer = load_tokenizer(config.tokenizer, *stages)
    read_vision(tokenizer, data.vision)
    if not isinstance(config.language, LanguageConfig):
        raise RebusError(
            "A merged language model has no rows nor adapters to train, but this system's is one. Give the stage a "
            "`language` that names its exported folder as `base`."
        )
    lm, text = build_language(config.language, dtype=dtype_of_base(base_dtype))
    share_codebook(lm, tokenizer.quantizer.codebook_KC)
    grammar = SeedGrammar(text, config.grammar, tokenizer.source)
    if (first_code_weight, word_weight) != (1.0, 1.0):
        lm.weigh_words(code_weights(grammar.config, grammar.vocabulary, first_code_weight, word_weight))
    if code_softmax == "position":
        lm.restrict_codes(code_positions(grammar.config, text.words))
    return LanguageTraining(lm, tokenizer, grammar, template=template, loss=loss, pack=pack)


def code_weights(
    config: SeedGrammarConfig, vocabulary: int, first_code_weight: float, word_weight: float = 1.0
) -> Tensor:
    """Weights of the words where the first code of an image counts `first_code_weight` times as much as the last; all of a place
    alike, 1 on the average; `word_weight` is every other word's. Raises RebusError where a code may stand anywhere."""
    if min(first_code_weight, word_weight) <= 0:
        raise RebusError(
            "The weights of the first code and of words must be above 0, but they are "
            f"{first_code_weight} and {word_weight}. Use 1 to weigh all alike."
        )
    if first_code_weight == 1.0:
        weights_V = torch.full((vocabulary,), word_weight)
        weights_V[config.first_code : config.first_code + config.codes] = 1.0
        return weights_V
    code_positions(config, config.first_code)
    places_N = torch.linspace(1, 0, config.per_image)
    weights_N = first_code_weight**places_N
    weights_V = torch.full((vocabulary,), word_weight)
    each = (weights_N / weights_N.mean()).repeat_interleave(config.codes // config.per_image)
    weights_V[config.first_code : config.first_code + config.codes] = each
    return weights_V


def code_positions(config: SeedGrammarConfig, words: int) -> CodePositions:
    """Which codes stand where in an image. Raises RebusError where any may stand anywhere."""
    if not config.per_query:
        raise RebusError(
            "The loss tells an image's codes apart by their places, but with this grammar any code may stand anywhere. "
            "Leave `first_code_weight` at 1 and `code_softmax` at `vocabulary`, or give each place codes of its own."
        )
    return CodePositions(config.first_code - words, config.per_image, config.codes // config.per_image)


def on_mixture(config: Config, data: Path, tokenizer: Path | None, base: Path | None) -> Stage:
    """Stage 3 on the sets that `data` names."""
    given = tuning.parts(config.system, data, tokenizer, base)
    return Stage(
        name="seed.stage3_pretrain",
        module=tuning.fresh(given, "plain"),
        step=lambda module, rows: module(rows),
        prepare=lambda module, batch: module.prepare(batch),
        trainable=trainable(config),
        data=tuning.batches(given, SOURCES, batch=config.source_batch, seed=config.seed),
        optim=config.optim,
        config=tuning.recorded(config, given),
    )


def trainable(config: Config) -> list[Trainable]:
    """New rows, adapters, and what of the base is trained in full."""
    return [
        *row_rates(config.row_lr, config.read_row_lr),
        Trainable("lm.llm.*lora_*", config.lr),
        *(Trainable(pattern, config.lr) for pattern in config.in_full),
    ]


def stage(
    config: Config, work: Path, data: Path | None = None, tokenizer: Path | None = None, base: Path | None = None
) -> Stage:
    """With `data` it needs a saved SEED as `tokenizer`, and a folder as `base` where the config's is not one; without,
    `work/emoji`, and the weights of mini.vision and SEED's stages 1 and 2 under `work`."""
    if data is not None:
        return on_mixture(config, data, tokenizer, base)
    torch.manual_seed(config.seed)
    module = training(
        config.system,
        work,
        template=config.template,
        loss=config.loss,
        pack=config.pack,
        base_dtype=config.base_dtype,
        first_code_weight=config.first_code_weight,
        word_weight=config.word_weight,
        code_softmax=config.code_softmax,
    )
    pictures = load_pictures(work / "emoji")
    if config.row_start == "aligned":
        read_stage(module, work / "seed.naming")
    elif config.row_start != "random":
        start_rows(module, work, named=config.row_start == "names")
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
        name="seed.stage3_pretrain",
        module=module,
        step=lambda module, rows: module(rows),
        prepare=lambda module, documents: module.prepare(documents),
        trainable=[*code_rates(module.lm.llm, config.lr, config.word_lr), *trainable(config)],
        data=Loader(documents, **parallel.sharded(config.batch)),
        evals=[evaluate],
        gates=ability_gates(config.gates, system, pictures, WATCHED, template=config.template),
        optim=config.optim,
        config=config,
    )


def start_rows(module: LanguageTraining, work: Path, *, named: bool) -> None:
    """Sets the rows of codes from the single pictures of the bank; the input rows, where `named`, from their names."""
    data = Frozen(work)
    bank, config = data.bank("train"), module.grammar.config
    ids = bank_codes(data, "train", module.tokenizer)
    singles = data.singles("train", len(bank))
    captions = [bank.captions[i] for i in singles]
    rows, table_VD = module.lm.llm.rows, module.lm.llm.base.get_input_embeddings().weight
    if rows is None or not isinstance(rows.input, Rows | CodebookRows) or not isinstance(rows.output, Rows):
        raise ValueError("Only a model with rows of its own for codes can begin these as captions; this one has none.")
    ids_IN = torch.from_numpy(ids[singles])
    counts_IK = torch.zeros(len(ids_IN), config.codes).scatter_add_(1, ids_IN, torch.ones(ids_IN.shape))
    text, book_KC = module.grammar.text, module.tokenizer.quantizer.codebook_KC
    input_KD, output_KD = rows_from_captions(table_VD, text, counts_IK, captions)
    if named:
        codes = named_codes(data, module.tokenizer)
        own, summed = torch.Generator().manual_seed(0), module.lm.llm.summed is not None
        input_KD = rows_from_names(table_VD, text, book_KC, *codes, summed=summed, generator=own)
    with torch.no_grad():
        if isinstance(rows.input, CodebookRows):
            rows.input.fit(input_KD)
        else:
            rows.input.weight_VD[: config.codes] = input_KD
        if not isinstance(rows.output, MarkRows):  # codes are chosen by what they add up to
            rows.output.weight_VD[: config.codes] = output_KD


def language_weights(folder: Path) -> dict[str, Tensor]:
    """The language model's own tensors that a run of stage 3 or 4 wrote into `folder`, under the text model's names."""
    found = load_file(folder / "weights.safetensors")
    return {k.removeprefix("lm.llm."): v for k, v in found.items() if k.startswith("lm.llm.")}
