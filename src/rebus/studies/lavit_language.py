"""A language model that reads the tokens of an arm: what an arm is worth for saying what a picture shows.

The arm is frozen. One linear layer leads from its tokens into the language model, which learns captions with adapters; it is
asked how well it foresees captions that it never saw, and which of four captions is the picture's.

Dimension key: I images · T tokens of all images · C width of a token · D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rebus.lm import InterleavedLM, Losses, log_likelihoods
from rebus.mini.frozen import Frozen
from rebus.mini.llm import read_base
from rebus.nn.attention import init_linears
from rebus.nn.lora import add_lora
from rebus.nn.precision import dtype_of_base
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.sequence import Sequence, collate, collated
from rebus.studies.arms import Measure
from rebus.studies.lavit_arms import Config, TokensArm
from rebus.studies.lavit_figures import name_of
from rebus.studies.writer import SequenceBatches
from rebus.train import Optim, Stage, Trainable
from rebus.visual import Features, Patches

MEASURES = (
    Measure("nats", "nats per word of a caption that was never seen", "lower"),
    Measure("chosen", "picture's own caption preferred to three others'"),
    Measure("steps", "steps taken", ""),
)
CHOICES = 4
"""Captions among which a picture's own must be preferred."""
SOURCE = "study"


class TokenProjector(nn.Module):
    """The tokens of pictures → vectors of the language model's width."""

    def __init__(self, width: int, llm_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, llm_width)
        init_linears(self.proj, generator)

    def forward(self, inputs: list[Features | Patches]) -> Tensor:
        """T x D, the tokens of all pictures in order."""
        rows = [image.x_WNC.flatten(0, 1) for image in inputs if isinstance(image, Features)]
        return self.proj(self.norm(torch.cat([x_TC.to(self.proj.weight) for x_TC in rows])))


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures as the tokens of an arm, with their captions."""

    tokens: list[Tensor]
    captions: list[str]
    names: list[str]


@torch.no_grad()
def seen(arm: TokensArm, data: Frozen, split: str, indices: np.ndarray) -> Seen:
    """The tokens of pictures of the bank as an arm makes them without dice."""
    arm.eval()
    generator, tokens = torch.Generator().manual_seed(0), []
    for part in np.array_split(indices, max(1, len(indices) // 200)):
        x_INC = data.rows(split, part, "tokens")[0][:, 1:]
        rows_TC, lengths_I = arm.rows(x_INC, arm.choice(x_INC, generator, 0.0) > 0)
        tokens += [rows.half() for rows in rows_TC.split(lengths_I.tolist())]
    captions = [data.bank(split).captions[i] for i in indices]
    return Seen(tokens, captions, [name_of(caption) for caption in captions])


class Reader(nn.Module):
    """The language model with the layer before it."""

    def __init__(self, config: Config, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        llm, self.text = read_base(config.base, dtype=dtype_of_base("auto"))
        add_lora(llm, rank=16, alpha=32, dropout=0.0, generator=generator)
        self.lm = InterleavedLM(llm, TokenProjector(width, llm.width, generator))

    def forward(self, sequences: list[Sequence]) -> Losses:
        """Nats per word of captions."""
        return self.lm.losses(collated(sequences, pack=128))


def lay(text: TextTokenizer, tokens_TC: Tensor, caption: str) -> Sequence:
    """A picture's tokens, then its caption, which is learned, and a line's end."""
    count, words = len(tokens_TC), text.encode(f" {caption}\n")
    ids = [0] * count + words
    target = [False] * count + [True] * len(words)
    return Sequence(ids, target, [(0, count)], inputs=[Features(tokens_TC[None], SOURCE)])


def reading(config: Config, reader: Reader, shown: Seen, steps: int, seed: int) -> Stage:
    """The training of a reader."""

    def made(i: int) -> Sequence:
        return lay(reader.text, shown.tokens[i], shown.captions[i])

    lr = config.language_lr
    return Stage(
        name="language",
        module=reader,
        step=lambda reader, sequences: reader(sequences),
        trainable=[Trainable("lm.llm.*lora_*", lr), Trainable("lm.input_projector.*", lr)],
        data=SequenceBatches(made, len(shown.tokens), config.language_batch, seed=seed),
        optim=Optim(steps=steps, warmup=0.05, min_lr_ratio=0.05, betas=(0.9, 0.95), weight_decay=0.01),
        config=config,
    )


@torch.no_grad()
def asked(reader: Reader, shown: Seen) -> dict[str, float]:
    """What a trained reader makes of pictures that it never saw."""
    reader.eval()
    own = [lay(reader.text, x, caption) for x, caption in zip(shown.tokens, shown.captions, strict=True)]
    words = [sum(sequence.target) for sequence in own]
    right = _likelihoods(reader, own)
    preferred = torch.ones(len(own), dtype=torch.bool)
    for at, others in enumerate(_others(shown.names)):
        if others:
            wrong = [lay(reader.text, shown.tokens[at], shown.captions[other]) for other in others]
            lengths = torch.tensor([float(sum(sequence.target)) for sequence in wrong])
            preferred[at] = bool((_likelihoods(reader, wrong) / lengths < right[at] / words[at]).all())
    return {"nats": -right.sum().item() / sum(words), "chosen": preferred.float().mean().item()}


def _likelihoods(reader: Reader, sequences: list[Sequence]) -> Tensor:
    device = reader.lm.llm.device
    parts = [sequences[start : start + 16] for start in range(0, len(sequences), 16)]
    return torch.cat([log_likelihoods(reader.lm, collate(part, pad_id=0).to(device)).cpu() for part in parts])


def _others(names: Several[str]) -> list[list[int]]:
    """For each picture the next ones of other names, whose captions are not its own."""
    found = []
    for at, name in enumerate(names):
        after = [(at + k) % len(names) for k in range(1, len(names))]
        different = [other for other in after if names[other] != name]
        found.append(different[: CHOICES - 1])
    return found
