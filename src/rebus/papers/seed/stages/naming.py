"""Before stage 3: the language model learns to say what a picture shows (ours; mini only).

The papers learn to read from a hundred million captions. Of the few ten thousand that the mini has, its language model learned to describe the pictures
it was shown and little else: most of what it was taught was how to speak of pictures, not what they show. What they show is taught first. The last codes of an
image are read as words that were fitted to names (`rebus.nn.image_codes`): what is left to learn is to say them. (What images are drawn from is
fitted here too, for the stages behind this one.) Of the image its last
codes alone are there, and of the reply the name alone is learned: a third of the words of a document that asks for it, and all of
them about what is shown.

    rebus train seed.naming --config mini --work state

Dimension key: I images · N codes of an image
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rebus.data.pictures import load_pictures
from rebus.mini.frozen import Frozen
from rebus.mini.named import load_named
from rebus.mini.named_stage import NamedConfig, named_stage
from rebus.mini.saying import Saying, begun
from rebus.mini.wishes import Wishes
from rebus.nn.text_model import TextModel
from rebus.nn.word_readings import WordFit, words_of_names
from rebus.papers.seed.bank import named_codes
from rebus.papers.seed.grammar import SeedGrammar
from rebus.papers.seed.language import image_codes
from rebus.papers.seed.rates import fitted_rates
from rebus.papers.seed.stages.stage3_pretrain import LanguageTraining, start_rows, training
from rebus.papers.seed.variants import MINI, SeedConfig
from rebus.train import Losses, Stage, Trainable


@dataclass(frozen=True)
class Config(NamedConfig):
    """How names are learned."""

    system: SeedConfig = field(default_factory=lambda: MINI)
    """The system whose language model is trained."""
    row_lr: float = 1e-4
    """Peak learning rate of the codes' rows."""
    word_lr: float = 1e-6
    """Peak learning rate of what reads codes as words, where the system has that: so low that it stays as it was fitted to names."""


CONFIGS = {"mini": Config()}


class CodeNaming(nn.Module):
    """A language model that reads an image as codes, of which the `last` are there, and says what it shows."""

    def __init__(self, grammar: SeedGrammar, names: list[str], last: int) -> None:
        super().__init__()
        self.last = last
        self.first_code, self.end_image = grammar.config.first_code, grammar.config.end_image
        self.saying = Saying(grammar.text, names)
        self.before_B = nn.Buffer(torch.tensor([*begun(grammar.text), grammar.config.begin_image]), persistent=False)

    def forward(self, llm: TextModel, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        end_I1 = torch.full((len(ids_IN), 1), self.end_image)
        words_IN = torch.cat([ids_IN + self.first_code, end_I1], 1)
        x_ILD, places_L = image_vectors(llm, self.before_B, words_IN, self.last + 1)
        return self.saying(llm, list(x_ILD), name_I, places_L)


class Naming(nn.Module):
    """The language model, and the names that it is to say."""

    def __init__(self, whole: LanguageTraining, names: list[str], last: int) -> None:
        super().__init__()
        self.lm = whole.lm
        self.naming = CodeNaming(whole.grammar, names, last)

    def forward(self, ids_IN: Tensor, name_I: Tensor) -> Losses:
        """Codes of images, and which name each has."""
        return self.naming(self.lm.llm, ids_IN, name_I)


def stage(config: Config, work: Path) -> Stage:
    """Needs `work/emoji`, and the weights of mini.vision and SEED's stages 1 and 2 under `work`."""
    torch.manual_seed(config.seed)
    whole = training(config.system, work, template="plain", loss="reply", pack=None, base_dtype="auto")
    start_rows(whole, work, named=True)
    data = Frozen(work)
    generator = torch.Generator().manual_seed(config.seed)
    fit_readings(whole, data, generator)
    fit_drawings(whole, data, generator)

    def seen(split: str) -> tuple[np.ndarray, Tensor]:
        copies = config.copies if split == "train" else 1
        ids_IN, name_I, _ = named_codes(data, whole.tokenizer, split, copies=copies)
        return ids_IN.numpy(), name_I

    names = load_named(work, "train").names
    module = Naming(whole, names, config.last)
    words = fitted_rates(whole.lm.llm, config.word_lr)
    trainable = [Trainable("lm.llm.rows.*", config.row_lr), *words, Trainable("lm.llm.*lora_*", config.lr)]
    return named_stage("seed.naming", module, seen, config, trainable, most=256)


@torch.no_grad()
def fit_readings(whole: LanguageTraining, data: Frozen, generator: torch.Generator) -> None:
    """Fits what reads codes as words to the names of pictures, where the language model has that."""
    if (codes := image_codes(whole.lm.llm)) is None or codes.reads is None:
        return
    ids_IN, name_I, names = named_codes(data, whole.tokenizer)
    sums_IC = torch.cat([codes.codebook_VC[some].sum(1) for some in ids_IN.split(1024)])
    words_QK = words_of_names(whole.grammar.text, names, codes.reads.config.words)
    # a sum has no parts of which some could be left out
    codes.reads.fit(sums_IC[:, None], name_I, words_QK, fit=WordFit(dropped=0.0), generator=generator)


@torch.no_grad()
def fit_drawings(whole: LanguageTraining, data: Frozen, generator: torch.Generator) -> None:
    """Fits what draws from words to what the codes of pictures add up to, where the language model has that."""
    if (codes := image_codes(whole.lm.llm)) is None or codes.draws is None:
        return
    wishes = Wishes(load_pictures(data.work / "emoji"), "train", 1)
    ids_IN = named_codes(data, whole.tokenizer)[0][: len(wishes)]
    words_IK = wishes.said(whole.grammar.text, codes.draws.config.words)
    codes.draws.fit(words_IK, codes.codebook_VC[ids_IN].sum(1)[:, None], generator=generator)


def image_vectors(llm: TextModel, before_B: Tensor, words_IN: Tensor, last: int) -> tuple[Tensor, Tensor]:
    """What the language model reads of images of these words and of what stands `before` them, of the codes the `last` alone:
    vectors [I, L, D] and the places [L] that they have."""
    words_IL = torch.cat([before_B.expand(len(words_IN), -1), words_IN.to(before_B.device)], 1)
    left_out = max(0, words_IN.shape[1] - last)
    places_L = torch.arange(words_IL.shape[1], device=before_B.device)
    places_L = places_L[(places_L < len(before_B)) | (places_L >= len(before_B) + left_out)]
    return llm.embed(words_IL)[:, places_L], places_L
