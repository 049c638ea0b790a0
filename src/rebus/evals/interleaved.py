"""Replies of words and pictures: is every image whole, are there as many as asked for, each after its own words?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch

from rebus.data.phrases import ASK_BOTH
from rebus.data.selection import Selection
from rebus.data.wording import GROUPS, named
from rebus.document import Document, Image, Message, user
from rebus.errors import RebusError
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare, mean
from rebus.evals.naming import names_of
from rebus.evals.nearest import choose
from rebus.evals.wordmatch import holds_any
from rebus.system import System


@dataclass(frozen=True)
class Asked:
    """A request for several pictures."""

    text: str
    count: int
    rows: tuple[int, ...]
    """what is to be drawn, in order; empty where the choice is left to the system"""


def interleaved(exam: Exam) -> Iterator[Found]:
    """`interleaved/…`: valid (replies whose images are all whole and that can be read back), count (replies with as many
    pictures as asked for), text_order (pictures whose own name was said just before them), drawn_order (pictures that look
    more like what belongs at their place than like the other thing that was asked for)."""
    config, pictures = exam.config, exam.pictures
    asked = requests(exam)
    documents = [Document((user(a.text),)) for a in asked]
    seeds = exam.seeds("any")
    runs = [exam.replies("interleaved", documents, "any", seed, images=4) for seed in seeds]
    yield compare(
        "interleaved/valid",
        lambda reply, document: float(is_whole(exam.system, document, reply)),
        runs,
        documents,
        ceiling=1.0,
        note="a reply that breaks nothing is valid whatever was asked, so wrong targets change nothing",
    )
    usual = Counter(a.count for a in asked).most_common(1)[0][0]
    yield compare(
        "interleaved/count",
        lambda count, a: float(count == a.count),
        [[len(reply.images) for reply in run] for run in runs],
        asked,
        chance=[usual] * len(asked),
        ceiling=1.0,
        note=f"chance: always {usual} pictures",
    )
    pairs = [i for i, a in enumerate(asked) if a.rows]
    targets = [asked[i].rows for i in pairs]
    yield compare(
        "interleaved/text_order",
        lambda texts, rows: mean([holds_any(t, names_of(pictures, r)) for t, r in zip(texts, rows, strict=True)]),
        [[texts_before(run[i], len(asked[i].rows)) for i in pairs] for run in runs],
        targets,
        chance=[[named(pictures, r) for r in reversed(rows)] for rows in targets],
        ceiling=[[named(pictures, r) for r in rows] for rows in targets],
        note="chance: the right names in the wrong order",
    )
    drawn = [[looks(exam, run[i], 2) for i in pairs] for run in runs]
    yield compare(
        "interleaved/drawn_order",
        lambda x_IC, rows: _in_order(x_IC, exam.real.vectors(rows)),
        drawn,
        targets,
        chance=0.5,
        ceiling=[exam.real.vectors(rows) for rows in targets],
        note="two pictures each; chance: a coin; ceiling: the real pictures",
    )
    for i, a in list(enumerate(asked))[: config.samples]:
        reply = runs[0][i]
        shown = [image.pixels for image in reply.images if image.pixels is not None]
        yield Sample(
            "interleaved",
            asked=a.text,
            wanted=f"{a.count} pictures",
            said=" ▢ ".join(texts_before(reply, len(reply.images))) or reply.text,
            score=float(len(reply.images) == a.count),
            seed=seeds[0],
            pictures=tuple((f"picture {number}", pixels) for number, pixels in enumerate(shown, 1)),
        )


def requests(exam: Exam) -> list[Asked]:
    """Half name two things, half a group, of which they want three."""
    pictures, config = exam.pictures, exam.config
    selection = Selection(pictures, config.split)
    rng = Random(f"interleaved {config.split} {config.choice}")
    asked = []
    for number, row in enumerate(choose(pictures, config.split, config.n, config.choice)):
        if number % 2 == 0 or not selection.groups:
            other = selection.something_else(row, rng)
            text = rng.choice(ASK_BOTH).format(a=selection.name(row), b=selection.name(other))
            asked.append(Asked(text, 2, (row, other)))
        else:
            group = GROUPS[rng.choice(selection.groups)]
            asked.append(Asked(f"Give me three examples from {group}, each with a picture.", 3, ()))
    return asked


def is_whole(system: System, document: Document, reply: Message) -> bool:
    """Are all images of the reply complete, and can the reply be laid out as a past turn? Systems that read again what
    they drew need its pixels; codes alone are enough for the others."""
    if any(image.generated is None or (system.detokenizer and image.pixels is None) for image in reply.images):
        return False
    try:
        if system.tokenizer is not None:
            images = iter(system.tokenizer.encode(reply.images, {"understanding"}) if reply.images else [])
            reply = Message(reply.role, tuple(next(images) if isinstance(p, Image) else p for p in reply.content))
        system.grammar.serialize(document.add(reply))
    except RebusError:
        return False
    return True


def texts_before(reply: Message, count: int) -> list[str]:
    """The text right before each of the first `count` images; empty for an image that is not there."""
    texts, said = [], ""
    for part in reply.content:
        if isinstance(part, str):
            said += part
        elif isinstance(part, Image):
            texts.append(said)
            said = ""
    return (texts + [""] * count)[:count]


def looks(exam: Exam, reply: Message, count: int) -> torch.Tensor:
    """Feature vectors [count, C] of the first images; zeros for one that is not there, which is like nothing."""
    shown = [image.pixels for image in reply.images if image.pixels is not None][:count]
    x_IC = exam.look(shown)
    return torch.cat([x_IC, x_IC.new_zeros(count - len(shown), x_IC.shape[1])])


def _in_order(x_IC: torch.Tensor, real_IC: torch.Tensor) -> float:
    """The share of pictures that are more like the real one of their own place than like the other."""
    likeness_II = x_IC @ real_IC.T
    own_I, other_I = likeness_II.diagonal(), likeness_II.flip(1).diagonal()
    return float((own_I > other_I).float().mean())
