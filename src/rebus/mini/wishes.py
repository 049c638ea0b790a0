"""Wishes for pictures of one thing, and what the lower layers of a language model make of them, computed once: what `drawing` of every
paper learns from.

Dimension key: I wishes · L length · T words of all wishes · D language-model width
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rebus.data import phrases as p
from rebus.data.phrases import say, sentence
from rebus.data.pictures import Pictures, plain_rows
from rebus.data.selection import Selection
from rebus.errors import RebusError
from rebus.mini.bank import IndexBatches, cached
from rebus.mini.frozen import fingerprint
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig
from rebus.mini.saying import lower, of_like_length, vector_states
from rebus.nn.precision import fast_dtype
from rebus.nn.text_model import TextModel
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.nn.word_drawings import words_of_wishes
from rebus.train import Losses, Stage, Trainable


@dataclass(frozen=True)
class DrawingConfig(NamedConfig):
    """What `drawing` of all papers is told."""

    depth: int = 22
    """Layers of the language model that stay as they are."""
    wordings: int = 2
    """In how many ways each picture is wished for."""
    named: int = 8
    """Pictures of a step that are named as well."""
    saying_weight: float = 1.0
    """Weight of the words that a picture is drawn from, where it is drawn from such."""
    naming_weight: float = 0.5
    """Weight of naming's loss beside that of drawing."""

    def check(self, layers: int) -> None:
        """Raises RebusError where no layer is left to learn, or nothing is to be named or wished for."""
        if min(self.named, self.wordings) < 1:
            raise RebusError(
                f"A step names {self.named} pictures, and each is wished for in {self.wordings} ways. Give `--named` and "
                "`--wordings` at least 1."
            )
        if not 0 <= self.depth < layers:
            raise RebusError(
                f"The first {self.depth} of {layers} layers are to stay as they are. Give `--depth` a number from 0 to {layers - 1}."
            )


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
    """Wishes for the split's pictures of one thing, in the order of `load_named`, each in several wordings: number w · pictures + i
    is the picture i in the wording w."""

    def __init__(self, pictures: Pictures, split: str, wordings: int) -> None:
        known = {pictures.concept[row] for row in plain_rows(pictures, "train")}
        self.split, self.selection = split, Selection(pictures, split)
        self.rows = [row for row in plain_rows(pictures, split) if pictures.concept[row] in known]
        self.wordings = wordings

    def __len__(self) -> int:
        return len(self.rows) * self.wordings

    def text(self, number: int) -> str:
        """How the picture is wished for; the first time by its name and style."""
        wording, i = divmod(number, len(self.rows))
        row, rng = self.rows[i], Random(f"{self.selection.split}/{i}/{wording}")
        asked = self.selection.wish(row, rng) if wording else self.selection.name(row)
        return sentence(say(p.DRAW_IN_STYLE, rng, a=asked, style=self.selection.style(row)))

    def said(self, text: TextTokenizer, words: int) -> Tensor:
        """The words that each picture is drawn from, [pictures, words]: the first of its name, and one of its style."""
        names = [self.selection.pictures.concept_label[row] for row in self.rows]
        return words_of_wishes(text, names, [self.selection.style(row) for row in self.rows], words)


class LowerStates:
    """What the first `depth` layers make of rows of words, end to end, [T, D] float16, computed once."""

    def __init__(self, llm: TextModel, words: Sequence[Sequence[int]], depth: int, file: Path) -> None:
        self.ends_I = np.cumsum([len(ids) for ids in words])
        part, number = lower(llm, depth), fast_dtype(llm.device)

        def run() -> np.ndarray:
            states = np.zeros((self.ends_I[-1], llm.width), np.float16)
            with torch.no_grad(), torch.autocast(llm.device.type, number, enabled=number != torch.float32):
                for some in of_like_length([len(ids) for ids in words], 64):
                    longest = max(len(words[i]) for i in some)
                    # what follows a row's last word is not seen by it
                    rows = [[*words[i], *[0] * (longest - len(words[i]))] for i in some]
                    ids_IL = torch.tensor(rows, device=llm.device)
                    x_ILD = vector_states(part, llm.embed(ids_IL), torch.arange(longest, device=llm.device))
                    for i, x_LD in zip(some, x_ILD.float().cpu().numpy(), strict=True):
                        states[self.ends_I[i] - len(words[i]) : self.ends_I[i]] = x_LD[: len(words[i])]
            return states

        assert llm.rows is not None  # or there were no marks around images
        made_of = fingerprint(part, llm.rows.input.table(), str([list(ids) for ids in words]))
        self.states_TD = cached(file, run, of=made_of)

    def __getitem__(self, number: int) -> Tensor:
        start = self.ends_I[number - 1] if number else 0
        return torch.from_numpy(np.array(self.states_TD[start : self.ends_I[number]])).float()


class SeenWishes(Protocol):
    """A split as a paper draws it."""

    @property
    def wishes(self) -> Wishes:
        """What is wished for."""
        ...

    def losses(self, learning: nn.Module, i: np.ndarray, named: int) -> Losses:
        """Of the wishes `i`; beside them so many pictures are `named`."""
        ...


def drawing_stage(
    name: str,
    module: nn.Module,
    seen: Callable[[str], SeenWishes],
    work: Path,
    config: DrawingConfig,
    trainable: list[Trainable],
) -> Stage:
    """`drawing` of a paper, from what is `seen` of a split; the first wishes of each are measured."""
    # there may be no trained name among those of val
    splits = {split: seen(split) for split in ("train", "val") if len(load_named(work, split))}
    train = splits["train"]

    def evaluate() -> Iterator[tuple[str, float]]:
        for split, of in splits.items():
            some = np.arange(min(len(of.wishes.rows), 192))
            for figure, value in of.losses(module, some, len(some)).parts.items():
                yield f"{split}/{figure}", float(value)

    return Stage(
        name=name,
        module=module,
        step=lambda learning, i: train.losses(learning, i, config.named),
        trainable=trainable,
        data=IndexBatches(len(train.wishes), config.batch, seed=config.seed),
        evals=[evaluate],
        optim=config.optim,
        config=config,
    )


def last_states(llm: TextModel, depth: int, states: Sequence[Tensor], count: int) -> Tensor:
    """The final states [I, count, D] of the last words of rows of which these are the states of the first `depth` layers, [L, D]
    each."""
    device, part = llm.device, upper(llm, depth)
    hidden = [states[0]] * len(states)
    for some in of_like_length([len(x_LD) for x_LD in states], 32):
        x_ILD = nn.utils.rnn.pad_sequence([states[i] for i in some], batch_first=True).to(device, llm.dtype)
        x_ILD = vector_states(part, x_ILD, torch.arange(x_ILD.shape[1], device=device))
        for i, x_LD in zip(some, x_ILD, strict=True):
            hidden[i] = x_LD[len(states[i]) - count : len(states[i])]
    return torch.stack(hidden)
