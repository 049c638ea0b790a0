"""A System that answers at once, in the place of every model that the apps load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import PIL.Image
import pytest
import torch
from rich.console import Console

import rebus.system
from rebus.apps import cli, loading
from rebus.document import Box, Document, Image, Message
from rebus.errors import RebusError
from rebus.system import System
from rebus.visual import Codes, Progress

RED = PIL.Image.new("RGB", (64, 64), (220, 30, 30))


class FakeTokenizer:
    """Four codes a picture: its size and the colour of its first pixel's red and green."""

    def encode(self, images, purposes, *, generators=None):
        assert purposes == {"generation"}
        return [
            image.with_tokens(generated=Codes(torch.tensor(self.codes(image.pixels)), "fake:1")) for image in images
        ]

    def codes(self, pixels):
        return [*pixels.size, *pixels.getpixel((0, 0))[:2]]


class FakeDetokenizer:
    """Draws codes as a picture of the colour that they say."""

    settings = frozenset({"steps"})

    def decode(self, tokens, *, sources, negatives, generators, sampling):
        assert len(tokens) == len(sources) == len(negatives) == len(generators)
        assert {token.source for token in tokens} == {FakeGrammar.source}
        for step in range(sampling.steps or 2):
            yield Progress(step + 1, sampling.steps or 2, RED)
        for codes in tokens:
            yield PIL.Image.new("RGB", (8, 8), tuple([*codes.ids_N.tolist(), 0, 0, 0][:3]))


class FakeGrammar:
    """Whose codes the model's words are."""

    source = "fake:1"


@dataclass
class FakeSystem:
    """Says what it was asked; draws when it may; notes every call."""

    calls: list[dict] = field(default_factory=list)
    closed: int = 0
    interrupt: bool = False
    grammar: FakeGrammar = field(default_factory=FakeGrammar)
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    detokenizer: FakeDetokenizer = field(default_factory=FakeDetokenizer)
    name: str = "seed:mini"
    weights: str = "fake"
    draw, check_drawing = System.draw, System.check_drawing
    edits = System.edits

    def stream(self, document: Document, *, modality, sampling, generator) -> Iterator:
        self.calls.append({"document": document, "modality": modality, "sampling": sampling, "generator": generator})
        question = document.messages[-1]
        try:
            if self.interrupt:
                raise KeyboardInterrupt
            if modality != "image":
                yield from [" You", " said ", f"“{question.text}” with {len(question.images)} pictures."]
            if modality != "text":
                yield Progress(1, 2)
                yield Progress(2, 2, RED)
                yield Image(RED)
            if modality == "any":
                yield "There:"
                yield Box(0.5, 0.5, 0.25, 1)
        finally:
            self.closed += 1

    def generate(self, documents, *, modality, sampling, generators, scorer, rows) -> list[Message]:
        assert sampling.best_of > 1 and callable(scorer)
        streams = [
            self.stream(document, modality=modality, sampling=sampling, generator=generator)
            for document, generator in zip(documents, generators, strict=True)
        ]
        return [Message("assistant", tuple(p for p in stream if not isinstance(p, Progress))) for stream in streams]


@pytest.fixture
def system(monkeypatch) -> FakeSystem:
    """The System that every `load` gives; unknown names are refused as the real one does."""
    fake = FakeSystem()

    def load(name: str, **options):
        if not name.startswith("seed"):
            raise RebusError(f"There is no system {name!r}. The papers are seed. Choose one with `rebus list`.")
        fake.calls.append({"load": name, **options})
        return fake

    monkeypatch.setattr(rebus.system, "load", load)
    monkeypatch.setattr(loading, "fetch_base", lambda config, console: None)
    return fake


@dataclass
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys, system):
    """`run("see", "cat.png")` through the real command line, in this process."""

    def call(*words: str | object) -> Ran:
        monkeypatch.setattr(cli, "out", Console(highlight=False, width=100))
        monkeypatch.setattr(cli, "err", Console(stderr=True, highlight=False, width=100))
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call
