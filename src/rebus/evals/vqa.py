"""Questions about pictures: the embedded ones, scenes, and the test set of easy-VQA."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import PIL.Image

from rebus.data.emoji_scenes import ask_about
from rebus.data.scenes import random_scene, render
from rebus.data.selection import Selection
from rebus.data.wording import GROUPS
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.nearest import choose
from rebus.evals.wordmatch import first_of, holds, says_yes
from rebus.images import open_image

VAL_FROM = 3600
"""While split is val, easy-VQA is asked about the images of its training part from this number on."""


@dataclass(frozen=True, eq=False)
class Question:
    """A picture, a question, and its answer in few words: `yes`, `no`, a name, a number."""

    kind: str
    picture: PIL.Image.Image
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    """all answers there are, where these are single words or fixed names"""


def vqa(exam: Exam) -> Iterator[Found]:
    """`vqa/…`: single (is this …, which style, which group), scene (how many, is there, what is where, which side, what
    colour), and easy (easy-VQA) where its data is offered."""
    config = exam.config
    asked = {
        "single": single_questions(exam, config.n),
        "scene": scene_questions(exam, config.n),
    }
    if exam.easy_vqa is not None:
        asked["easy"] = easy_questions(exam.easy_vqa(), config.split, config.n, config.choice)
    for part, questions in asked.items():
        documents = [Document((user(Image(q.picture), q.text),)) for q in questions]
        seeds = exam.seeds("text")
        runs = [[m.text for m in exam.replies(f"questions ({part})", documents, "text", seed)] for seed in seeds]
        kinds = [q.kind for q in questions]
        usual = {kind: Counter(q.answer for q in questions if q.kind == kind).most_common(1)[0][0] for kind in kinds}
        yield compare(
            f"vqa/{part}",
            is_right,
            runs,
            questions,
            chance=[usual[kind] for kind in kinds],
            ceiling=[q.answer for q in questions],
            groups=kinds,
            note="chance: the commonest answer of each kind of question; wrong targets are of the same kind",
        )
        for question, answer in list(zip(questions, runs[0], strict=True))[: config.samples]:
            yield Sample(
                "vqa",
                asked=question.text,
                wanted=question.answer,
                said=answer,
                score=is_right(answer, question),
                seed=seeds[0],
                pictures=((part, question.picture),),
            )


def is_right(answer: str, question: Question) -> float:
    """Yes and no by the first of the two words; of single words among choices, by the first that is one; else by
    whether the answer holds the name."""
    if question.answer in ("yes", "no"):
        said = says_yes(answer)
        return float(said is not None and said == (question.answer == "yes"))
    if question.choices:
        return float(first_of(answer, question.choices) == question.answer)
    return float(holds(answer, question.answer))


def single_questions(exam: Exam, n: int) -> list[Question]:
    """Questions about one picture, of four kinds in turn; yes and no in turn."""
    pictures, config = exam.pictures, exam.config
    selection = Selection(pictures, config.split)
    rng = Random(f"single questions {config.choice}")
    asked = []
    for number, row in enumerate(choose(pictures, config.split, n, config.choice)):
        picture, yes = pictures.image(row, 64), number // 4 % 2 == 0
        match number % 4:
            case 0:
                meant = row if yes else selection.something_else(row, rng)
                kind, text, answer = "is it", f"Is this {selection.name(meant)}?", "yes" if yes else "no"
            case 1:
                kind, text, answer = "style", "Which style is this drawn in?", selection.style(row)
            case 2:
                style = selection.style(row) if yes else selection.other_style_name(row, rng)
                kind, text, answer = "is it drawn so", f"Is this drawn in {style} style?", "yes" if yes else "no"
            case _:
                kind, text, answer = "group", "Which group does this belong to?", GROUPS[pictures.group[row]]
        asked.append(Question(kind, picture, text, answer))
    return asked


def scene_questions(exam: Exam, n: int) -> list[Question]:
    """Questions about scenes as the data asks them."""
    config = exam.config
    selection = Selection(exam.pictures, config.split)
    asked = []
    for number in range(n):
        rng = Random(f"scene questions {config.split} {config.choice} {number}")
        scene = random_scene(selection.things, rng)
        text, answer = ask_about(selection, scene, rng)
        key = short(answer)
        kind = " ".join(text.split()[:2]) if key not in ("yes", "no") else "yes or no"
        asked.append(Question(kind, render(exam.pictures, scene), text, key))
    return asked


def short(answer: str) -> str:
    """`A red apple.` → `red apple`, `Yes.` → `yes`."""
    text = answer.strip().rstrip(".").lower()
    article = next((a for a in ("a ", "an ", "the ") if text.startswith(a)), "")
    return text.removeprefix(article)


def easy_questions(folder: Path, split: str, n: int, seed: int) -> list[Question]:
    """Questions of easy-VQA: of its test part, or, while split is val, of images that its training part keeps back.

    `folder` holds `train` and `test`. Raises RebusError if it does not.
    """
    part = "train" if split == "val" else "test"
    try:
        rows = json.loads((folder / part / "questions.json").read_text())
        choices = tuple(sorted((folder / "answers.txt").read_text().split()))
    except (OSError, ValueError) as error:
        raise RebusError(
            f"{folder} does not hold easy-VQA ({error}). Delete it, so that it is fetched again."
        ) from None
    if part == "train":
        rows = [row for row in rows if row[2] >= VAL_FROM]
    Random(f"easy-vqa {seed}").shuffle(rows)
    asked = []
    for text, answer, number in rows[:n]:
        picture = open_image(folder / part / "images" / f"{number}.png")
        asked.append(Question(_easy_kind(answer), picture, text, answer, choices))
    return asked


def _easy_kind(answer: str) -> str:
    shapes = ("circle", "rectangle", "triangle")
    return "yes or no" if answer in ("yes", "no") else "shape" if answer in shapes else "colour"
