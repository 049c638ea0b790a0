"""After naming: the upper layers of the language model learn what things look like by name (ours; mini only).

The mirror of `seed.align`: a wish for a thing in a style, and the first codes of its picture, which say the most; nothing else is
in the document. The lower layers stay as they are, so that what they make of wishes is computed once, and a step costs a quarter of a
step of language modelling. In each step a few pictures are named too, so that what was learned of reading stays.

    rebus train seed.drawing --config mini --work state

Dimension key: I pictures · N codes of an image · E codes of a place · T words of all wishes · L length · D language-model width
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rebus.data import phrases as p
from rebus.data.phrases import say, sentence
from rebus.data.pictures import Pictures, load_pictures, plain_rows
from rebus.data.selection import Selection
from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.mini.align import lower, of_like_length, vector_states
from rebus.mini.bank import IndexBatches, cached
from rebus.mini.frozen import Frozen, fingerprint
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, read_stage
from rebus.nn.text_model import TextModel
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.stages.naming import CodeNaming
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Optim, Stage, Trainable
from rebus.visual import Codes

NAME = "seed.drawing"


@dataclass(frozen=True)
class Config(NamedConfig):
    """How drawing is begun."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    depth: int = 22
    """Layers of the language model that stay as they are."""
    first: int = 12
    """First codes of an image that are learned; those behind them say less and would be most of the work."""
    first_code_weight: float = 2.0
    """How many times as much the first of these codes counts as the last."""
    wordings: int = 2
    """In how many ways each picture is wished for."""
    named: int = 8
    """Pictures of a step that are named as well."""
    naming_weight: float = 0.5
    """Weight of naming's loss beside that of drawing."""
    row_lr: float = 5e-4
    """Peak learning rate of the rows of codes that are written; those that are read stay."""


CONFIGS = {
    "mini": Config(
        optim=Optim(steps=600, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
    )
}


def upper(llm: TextModel, depth: int) -> TextModel:
    """The layers of a language model behind the first `depth`, and the final norm; the weights are shared with the model."""
    part = lower(llm, 0)
    trunk, body = llm.base.base_model, part.base.base_model
    layers = list(trunk.layers)[depth:]
    body._modules |= {"layers": nn.ModuleList(layers), "norm": trunk.norm}
    body.config = copy.copy(trunk.config)
    body.config.num_hidden_layers = len(layers)
    return part


class Wishes:
    """Wishes for the split's pictures of one thing, in the order of `named_codes`, each in several wordings: number w · pictures + i
    is the picture i in the wording w."""

    def __init__(self, pictures: Pictures, split: str, ids_IN: Tensor, grammar: SeedGrammar, config: Config) -> None:
        known = {pictures.concept[row] for row in plain_rows(pictures, "train")}
        self.selection = Selection(pictures, split)
        self.rows = [row for row in plain_rows(pictures, split) if pictures.concept[row] in known]
        self.ids_IN, self.grammar, self.first = ids_IN[: len(self.rows)], grammar, config.first
        self.wordings = config.wordings

    def __len__(self) -> int:
        return len(self.rows) * self.wordings

    def text(self, number: int) -> str:
        """How the picture is wished for; the first time by its name and style."""
        wording, i = divmod(number, len(self.rows))
        row, rng = self.rows[i], Random(f"{self.selection.split}/{i}/{wording}")
        asked = self.selection.wish(row, rng) if wording else self.selection.name(row)
        return sentence(say(p.DRAW_IN_STYLE, rng, a=asked, style=self.selection.style(row)))

    def words(self, number: int) -> list[int]:
        """The words of the wish, the mark that begins the image, and all but the last of the codes that are learned."""
        codes = Codes(self.ids_IN[number % len(self.rows)], self.grammar.source)
        document = Document((user(self.text(number)), assistant(Image(generated=codes))))
        ids = self.grammar.serialize(document, template="chat").ids
        return ids[: ids.index(self.grammar.config.begin_image) + self.first]

    def codes(self, numbers: np.ndarray) -> Tensor:
        """What is learned, as places among the codes of their own place, [I, first]."""
        each = self.grammar.config.codes // self.grammar.config.per_image
        return self.ids_IN[torch.from_numpy(numbers % len(self.rows)), : self.first] % each


class LowerStates:
    """What the lower layers make of wishes, end to end, [T, D] float16, computed once."""

    def __init__(self, llm: TextModel, wishes: Wishes, depth: int, file: Path) -> None:
        words = [wishes.words(number) for number in range(len(wishes))]
        self.ends_I = np.cumsum([len(ids) for ids in words])
        part = lower(llm, depth)

        def run() -> np.ndarray:
            states = np.zeros((self.ends_I[-1], llm.width), np.float16)
            with torch.no_grad(), torch.autocast(llm.device.type, torch.bfloat16):
                for some in of_like_length([len(ids) for ids in words], 64):
                    longest = max(len(words[i]) for i in some)
                    # what follows a wish's last word is not seen by it
                    ids_IL = torch.tensor([words[i] + [0] * (longest - len(words[i])) for i in some], device=llm.device)
                    x_ILD = vector_states(part, llm.embed(ids_IL), torch.arange(longest, device=llm.device))
                    for i, x_LD in zip(some, x_ILD.float().cpu().numpy(), strict=True):
                        states[self.ends_I[i] - len(words[i]) : self.ends_I[i]] = x_LD[: len(words[i])]
            return states

        assert llm.rows is not None  # or there were no codes
        made_of = fingerprint(part, llm.rows.input.table(), str(words))
        self.states_TD = cached(file, run, of=made_of)

    def __getitem__(self, number: int) -> Tensor:
        start = self.ends_I[number - 1] if number else 0
        return torch.from_numpy(np.array(self.states_TD[start : self.ends_I[number]])).float()


class Drawing(nn.Module):
    """The language model, and what it is to draw and to name."""

    def __init__(self, whole: LanguageTraining, names: list[str], config: Config) -> None:
        super().__init__()
        self.lm, self.config = whole.lm, config
        self.naming = CodeNaming(whole.grammar, names, config.last)
        grammar = whole.grammar.config
        each = grammar.codes // grammar.per_image
        start = grammar.first_code - whole.lm.llm.words
        self.rows, self.each = slice(start, start + config.first * each), each
        weights_N = config.first_code_weight ** torch.linspace(1, 0, config.first)
        self.weights_N = nn.Buffer(weights_N / weights_N.mean(), persistent=False)

    def nats(self, states: Sequence[Tensor], which_IN: Tensor) -> Tensor:
        """What each code costs among those of its place, [I, N]; `states` are the lower layers', [L, D] each."""
        llm, device = self.lm.llm, self.lm.llm.device
        assert llm.rows is not None
        part, hidden = upper(llm, self.config.depth), [states[0]] * len(states)
        for some in of_like_length([len(x_LD) for x_LD in states], 32):
            x_ILD = pad_sequence([states[i] for i in some], batch_first=True).to(device, llm.dtype)
            x_ILD = vector_states(part, x_ILD, torch.arange(x_ILD.shape[1], device=device))
            for i, x_LD in zip(some, x_ILD, strict=True):
                hidden[i] = x_LD[len(states[i]) - self.config.first : len(states[i])]
        table_NED = llm.rows.output.table()[self.rows].unflatten(0, (-1, self.each))
        x_IND = torch.stack(hidden)
        logits_INE = torch.einsum("ind,ned->ine", x_IND, table_NED.to(x_IND.dtype)).float()
        return F.cross_entropy(logits_INE.flatten(0, 1), which_IN.to(device).flatten(), reduction="none").view(
            which_IN.shape
        )

    def forward(self, states: Sequence[Tensor], which_IN: Tensor, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Wishes and the codes of their pictures; codes of images to be named, and their names."""
        nats_IN = self.nats(states, which_IN)
        named = self.naming(self.lm.llm, ids_IN, name_I)
        total = (nats_IN * self.weights_N).mean() + self.config.naming_weight * named.total
        return Losses(
            total, {"drawing": nats_IN.mean(), "first": nats_IN[:, 0].mean(), "naming": named.total, **named.parts}
        )


@dataclass(frozen=True)
class Seen:
    """A split: wishes with what the lower layers make of them, and pictures by codes and name."""

    wishes: Wishes
    states: LowerStates
    ids_IN: Tensor
    name_I: Tensor

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`, the first `named` of which are for pictures that are named too."""
        some = torch.from_numpy(i[:named] % len(self.name_I))
        return learning([self.states[k] for k in i], self.wishes.codes(i), self.ids_IN[some], self.name_I[some])


def stage(config: Config, work: Path) -> Stage:
    """Needs what `seed.naming` needs, and its weights under `work`. Raises RebusError where more codes are asked for than an
    image has, no layer is left to learn, or nothing is to be named or wished for."""
    codes = config.system.tokenizer.qformer.queries
    if not 1 <= config.first <= codes:
        raise RebusError(
            f"Of an image's {codes} codes the first {config.first} are to be learned. Give `--first` a number from 1 to {codes}."
        )
    if min(config.named, config.wordings) < 1:
        raise RebusError(
            f"A step names {config.named} pictures, and each is wished for in {config.wordings} ways. Give `--named` and "
            "`--wordings` at least 1."
        )
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="chat", loss="reply", pack=None, base_dtype="auto")
    layers = len(whole.lm.llm.base.base_model.layers)
    if not 0 <= config.depth < layers:
        raise RebusError(
            f"The first {config.depth} of {layers} layers are to stay as they are. Give `--depth` a number from 0 to {layers - 1}."
        )
    read_stage(whole, work / "seed.naming")
    data, pictures = Frozen(work), load_pictures(work / "emoji")
    module = Drawing(whole, load_named(work, "train").names, config)

    def seen(split: str) -> Seen:
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=config.copies if split == "train" else 1)
        wishes = Wishes(pictures, split, ids_IN, whole.grammar, config)
        file = work / "cache" / f"seed_wishes.{split}.npy"
        return Seen(wishes, LowerStates(whole.lm.llm, wishes, config.depth, file), ids_IN, name_I)

    # there may be no trained name among those of val
    splits = {split: seen(split) for split in ("train", "val") if len(load_named(work, split))}
    train = splits["train"]

    def evaluate() -> Iterator[tuple[str, float]]:
        for split, of in splits.items():
            some = np.arange(min(len(of.wishes.rows), 192))
            for figure, value in of.losses(module, some, len(some)).parts.items():
                yield f"{split}/{figure}", float(value)

    return Stage(
        name=NAME,
        module=module,
        step=lambda learning, i: train.losses(learning, i, config.named),
        trainable=[
            Trainable("lm.llm.rows.output.*", config.row_lr),
            *(Trainable(f"lm.llm.base.*.layers.{k}.*lora_*", config.lr) for k in range(config.depth, layers)),
        ],
        data=IndexBatches(len(train.wishes), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )
