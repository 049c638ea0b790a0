"""An exam: the system that is measured, the pictures it is asked about, the scorers, and the settings of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import PIL.Image
import torch
from torch import Tensor

from rebus.data.pictures import Pictures, plain_rows
from rebus.data.splits import Split
from rebus.document import Document, Image, Message, assistant
from rebus.errors import RebusError
from rebus.evals.nearest import Gallery, Look, RealPictures, gallery
from rebus.grammar import Modality
from rebus.nn.text_model import TextModel
from rebus.sampling import Sampling
from rebus.system import ReadBack, System
from rebus.visual import ImageSampling, Progress, VisualTokens

Report = Callable[[str, int, int], None]
"""Called as `report(what, done, of)` while long work goes on."""
Sentences = Callable[[Sequence[str]], Tensor]
"""Texts → unit vectors, [I, C]."""
X = TypeVar("X")

IMAGE_WORDS = 320
"""Room for one image in a reply where it cannot be found out: LaVIT's largest has 256 words and marks."""


@dataclass(frozen=True)
class EvalConfig:
    """What is asked, how often, and how replies are sampled."""

    split: Split = "val"
    """Which pictures: train (names and pictures that were trained), val, or the two kept for published figures: pairs
    (a known thing in a style that was never seen together with it) and concepts (things never seen)."""
    n: int = 200
    """Items of each task, fewer where the split has fewer."""
    codebook_n: int = 20_000
    """Most pictures that are read to see which codes are used; more than there are takes all of the split."""
    names: int = 200
    """Among how many names a drawn picture must be recognised."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Sampling seeds; every figure is a mean over them. What no seed can change is asked once."""
    choice: int = 0
    """Seed of which pictures are asked about; figures of two systems compare only where it is the same."""
    batch: int = 16
    """Documents answered side by side."""
    temperature: float = 0.7
    """Of words and codes; 0 takes the likeliest."""
    top_p: float = 0.5
    """Words and codes are drawn from the likeliest that together have this probability (as SEED-LLaMA's published scripts
    do); 1 draws from all."""
    guidance: float = 1.0
    """Classifier-free guidance of an image's words, where a reply is an image; 1 is off."""
    best_of: int = 1
    """Drawings that are written for each wish, of which the one is taken that the model itself best recognises."""
    max_new_tokens: int = 48
    """Longest answer in words; pictures have room of their own."""
    steps: int | None = None
    """Denoising steps of a picture; the detokenizer's own number unless given."""
    question: str = "What is in this picture?"
    """How a caption is asked for."""
    samples: int = 24
    """Samples kept of each task."""


@dataclass(frozen=True, eq=False)
class Exam:
    """Everything that a task needs."""

    system: System
    pictures: Pictures
    look: Look
    """pictures → unit vectors of a network that nothing was trained with or against (`scorer.load_scorer`)"""
    config: EvalConfig = field(default_factory=EvalConfig)
    sentences: Callable[[], Sentences] | None = None
    """gives the sentence encoder when it is first needed; without it, texts are not compared"""
    base: Callable[[], TextModel] | None = None
    """gives the language model that the system's was made from, when it is first needed; without it, what the system kept
    of it is not measured"""
    easy_vqa: Callable[[], Path] | None = None
    """gives the folder of the easy-VQA data when it is first needed; without it, that benchmark is left out"""
    report: Report = lambda what, done, of: None

    @cached_property
    def real(self) -> RealPictures:
        """Feature vectors of the embedded pictures, shared by all tasks of this exam."""
        return RealPictures(self.pictures, self.look)

    def gallery(self, asked: Sequence[int]) -> Gallery:
        """The real pictures of `config.names` names, those of the rows asked about among them."""
        return gallery(self.real, asked, self.config.names, self.config.choice)

    @cached_property
    def image_words(self) -> int:
        """Room for one image in a reply: half as much again as the longest of a few real ones takes."""
        if self.system.tokenizer is None:
            return IMAGE_WORDS
        pictures = [Image(self.pictures.image(row)) for row in plain_rows(self.pictures, "train")[:4]]
        generators = [generator(0, number) for number in range(len(pictures))]
        images = self.system.tokenizer.encode(pictures, {"generation"}, generators=generators)
        laid_out = [self.system.grammar.serialize(Document((assistant(image),)), template="plain") for image in images]
        return max(len(sequence) * 3 // 2 for sequence in laid_out) if laid_out else IMAGE_WORDS

    def seeds(self, modality: Modality) -> tuple[int, ...]:
        """The sampling seeds, or the first alone where a seed changes nothing: words taken greedily."""
        greedy = self.config.temperature == 0 and modality == "text"
        return self.config.seeds[:1] if greedy else self.config.seeds

    def replies(
        self, what: str, documents: Sequence[Document], modality: Modality, seed: int, *, images: int = 1
    ) -> list[Message]:
        """The system's reply to each document; `images` is for how many pictures a reply has room.

        What is said to a document depends on the seed and its number, not on the batch.
        """
        config = self.config
        sampling = Sampling(
            max_new_tokens=config.max_new_tokens + (0 if modality == "text" else images * self.image_words),
            temperature=config.temperature,
            top_p=config.top_p,
            guidance=config.guidance if modality == "image" else 1.0,
            best_of=config.best_of if modality == "image" else 1,
            image=ImageSampling(steps=config.steps),
        )
        said: list[Message] = []
        for numbers in self.batches(f"{what}, seed {seed}", len(documents)):
            generators = [generator(seed, number) for number in numbers]
            asked = [documents[number] for number in numbers]
            said += self.system.generate(
                asked,
                modality=modality,
                sampling=sampling,
                generators=generators,
                scorer=ReadBack(self.system),
                rows=config.batch,
            )
        return said

    def encode(self, pictures: Sequence[PIL.Image.Image], *, seed: int = 0) -> list[VisualTokens]:
        """The tokens of pictures as the system would write them; `seed` is that of what is drawn. Raises RebusError for a system without a tokenizer."""
        if self.system.tokenizer is None:
            raise RebusError("This system has no tokenizer, so it cannot read pictures. Load it with all its parts.")
        found: list[VisualTokens] = []
        for numbers in self.batches("reading pictures", len(pictures)):
            images = [Image(pictures[number]) for number in numbers]
            generators = [generator(seed, number) for number in numbers]
            encoded = self.system.tokenizer.encode(images, {"generation"}, generators=generators)
            found += [image.generated for image in encoded if image.generated is not None]
        return found

    def draw(self, tokens: Sequence[VisualTokens], seed: int) -> list[PIL.Image.Image]:
        """The pictures of tokens. Raises RebusError for a system without a detokenizer."""
        if self.system.detokenizer is None:
            raise RebusError("This system has no detokenizer, so it cannot draw. Load it with all its parts.")
        found: list[PIL.Image.Image] = []
        for numbers in self.batches(f"drawing, seed {seed}", len(tokens)):
            drawing = self.system.detokenizer.decode(
                [tokens[number] for number in numbers],
                sources=[None] * len(numbers),
                negatives=[None] * len(numbers),
                generators=[generator(seed, number) for number in numbers],
                sampling=ImageSampling(steps=self.config.steps),
            )
            found += [drawn for drawn in drawing if not isinstance(drawn, Progress)]
        return found

    def batches(self, what: str, count: int) -> Iterator[range]:
        """The numbers 0 … count - 1 in batches, reported as they are done."""
        for start in range(0, count, self.config.batch):
            yield range(start, min(start + self.config.batch, count))
            self.report(what, min(start + self.config.batch, count), count)


def generator(seed: int, number: int) -> torch.Generator:
    """The random stream of one item of a run."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
