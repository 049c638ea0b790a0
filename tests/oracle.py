"""A system whose every answer is given, for testing what is asked of systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rebus.data.pictures import load_pictures, plain_rows
from rebus.data.scenes import render
from rebus.data.wording import named, style_name
from rebus.document import Image, assistant
from rebus.errors import RebusError
from rebus.evals import interleaved as books
from rebus.evals import scenes as scene_task
from rebus.evals.exam import EvalConfig, Exam
from rebus.evals.figures import Figure
from rebus.evals.nearest import choose
from rebus.evals.run import TASKS
from rebus.evals.vqa import scene_questions, single_questions
from rebus.images import prepare
from rebus.sampling import Sampling
from rebus.visual import Codes, Progress

PICTURES = load_pictures(Path(__file__).parent / "data" / "pictures")
CONFIG = EvalConfig(split="train", n=20, names=18, seeds=(0, 1), batch=7, samples=4)


def look(pictures):
    """Colours on a grid of 8 x 8: good enough to tell the pictures of the small set apart."""
    if not pictures:
        return torch.zeros(0, 192)
    return F.normalize(prepare(pictures, 8, mean=(0.5,) * 3).flatten(1) + 1e-6, dim=-1)


def key(picture):
    return np.asarray(picture.convert("RGB")).tobytes()


class Grammar:
    """Lays out whatever has codes."""

    special = SimpleNamespace(bos=None)

    def serialize(self, document, **_):
        for image in document.images:
            if image.understood is None and image.generated is None:
                raise RebusError("no codes")
        return [0] * 8


class Tokenizer:
    """The code of a picture is its number; the picture of a code is remembered."""

    config = SimpleNamespace(codebook_size=1000)

    def __init__(self):
        self.seen: list = []

    def encode(self, images, purposes, *, generators=None):
        done = []
        for image in images:
            if image.generated is None:
                self.seen.append(image.pixels)
                codes = Codes(torch.tensor([len(self.seen) - 1]), "oracle")
                image = image.with_tokens(understood=codes, generated=codes)
            done.append(image)
        return done


class Detokenizer:
    settings = frozenset({"steps"})

    def __init__(self, tokenizer, damage=lambda picture, generator: picture):
        self.tokenizer, self.damage = tokenizer, damage

    def decode(self, tokens, *, sources, negatives, generators, sampling):
        yield Progress(1, 1)
        for token, dice in zip(tokens, generators, strict=True):
            yield self.damage(self.tokenizer.seen[int(token.ids_N[0])], dice)


class Oracle:
    """A system that answers from a table: (text, picture) → parts of the reply."""

    name = "oracle"

    def __init__(self, table, otherwise=lambda document, dice: ("",)):
        self.table, self.otherwise = table, otherwise
        self.grammar, self.lm = Grammar(), None
        self.tokenizer = Tokenizer()
        self.detokenizer = Detokenizer(self.tokenizer)
        self.asked: list = []

    def generate(self, documents, *, modality, sampling, generators, scorer, rows):
        assert isinstance(sampling, Sampling) and len(documents) == len(generators) <= rows
        said = []
        for document, dice in zip(documents, generators, strict=True):
            text, pictures = document.messages[-1].text, tuple(key(i.pixels) for i in document.images)
            self.asked.append((text, modality))
            said.append(assistant(*(self.table.get((text, pictures)) or self.otherwise(document, dice))))
        return said


def drawn(picture):
    return Image(picture, generated=Codes(torch.tensor([0]), "oracle"))


def perfect(exam) -> Oracle:
    """Knows every answer that the tasks may ask for."""
    config, table = exam.config, {}
    for row in plain_rows(PICTURES, "train"):
        image = PICTURES.image(row)
        table[config.question, (key(image),)] = (f"This is {named(PICTURES, row)}.",)
        asked = f"Draw {named(PICTURES, row)} in {style_name(PICTURES, row)} style."
        table[asked, ()] = (drawn(image),)
    for question in single_questions(exam, config.n) + scene_questions(exam, config.n):
        table[question.text, (key(question.picture),)] = (question.answer,)
    for wanted in scene_task.requests(PICTURES, config.split, config.n, config.choice):
        table[wanted.text, ()] = (drawn(render(PICTURES, wanted.scene).reduce(2)),)
    for asked in books.requests(exam):
        rows = asked.rows or tuple(choose(PICTURES, "train", asked.count, 0))
        parts = [part for row in rows for part in (f"Here is {named(PICTURES, row)}: ", drawn(PICTURES.image(row)))]
        table[asked.text, ()] = tuple(parts)
    return Oracle(table)


def deaf(document, dice):
    """Answers, and draws, something that has nothing to do with what was asked."""
    rows = plain_rows(PICTURES, "train")
    row = rows[int(torch.randint(len(rows), (1,), generator=dice))]
    return f"This is {named(PICTURES, row)}.", drawn(PICTURES.image(row))


def exam_of(system, **changes) -> Exam:
    return Exam(system, PICTURES, look, replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def best() -> Exam:
    exam = exam_of(None)
    return replace(exam, system=perfect(exam))


@pytest.fixture(scope="module")
def worst() -> Exam:
    return exam_of(Oracle({}, deaf), seeds=(0, 1, 2, 3))


def figures(task, exam):
    return {f.name: f for f in TASKS[task](exam) if isinstance(f, Figure)}
