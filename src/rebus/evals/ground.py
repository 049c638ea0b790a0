"""Pointing: the box that answers `Where is the cat?`, and how well it covers the cat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import PIL.Image

from rebus.data.emoji_pointing import one_of_a_kind
from rebus.data.scenes import exact_box, render
from rebus.data.selection import Selection
from rebus.document import Box, Document, Image, Message, assistant, user
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare

MIDDLE = Box(0.5, 0.5, 0.4, 0.4)
"""An answer that looks at nothing."""
ENOUGH = 0.5
"""Overlap from which on a box is right."""


@dataclass(frozen=True, eq=False)
class Item:
    """A thing in a scene."""

    image: PIL.Image.Image
    name: str
    box: Box


def ground(exam: Exam) -> Iterator[Found]:
    """`ground/…`: iou_50 (boxes that overlap with the thing asked for by half of what both cover) and iou (the mean overlap).
    Raises RebusError for a system whose words have no boxes."""
    config = exam.config
    exam.system.grammar.serialize(Document((assistant(MIDDLE),)), template="plain")
    asked = things(exam)
    documents = [Document((user(Image(item.image), f"Where is the {item.name}?"),)) for item in asked]
    seeds = exam.seeds("text")
    runs = [[first_box(reply) for reply in exam.replies("pointing", documents, "text", seed)] for seed in seeds]
    targets = [item.box for item in asked]
    note = "chance: a box of two fifths in the middle; a reply without a box overlaps with nothing"
    for name, score in (("iou_50", lambda a, b: float(overlap(a, b) >= ENOUGH)), ("iou", overlap)):
        yield compare(f"ground/{name}", score, runs, targets, chance=[MIDDLE] * len(asked), ceiling=1.0, note=note)
    for i, item in list(enumerate(asked))[: config.samples]:
        yield Sample(
            "ground",
            asked=documents[i].messages[0].text,
            wanted=words(item.box),
            said=words(runs[0][i]),
            score=float(overlap(runs[0][i], item.box) >= ENOUGH),
            seed=seeds[0],
            pictures=(("asked about", item.image), ("pointed at", cut(item.image, runs[0][i]))),
        )


def things(exam: Exam) -> list[Item]:
    """Things that each stand in a scene of the split, of which there is one in it."""
    config, pictures = exam.config, exam.pictures
    selection = Selection(pictures, config.split)
    rng = Random(f"ground {config.split} {config.choice}")
    found = []
    for _ in range(config.n):
        scene, placed = one_of_a_kind(selection, rng)
        found.append(Item(render(pictures, scene), pictures.label[placed.row], exact_box(pictures, placed)))
    return found


def first_box(reply: Message) -> Box | None:
    """The first box of a reply, where it has one."""
    return next((part for part in reply.content if isinstance(part, Box)), None)


def overlap(one: Box | None, two: Box) -> float:
    """What both boxes cover, as a share of what either covers; 0 for no box, or two that cover nothing."""
    if one is None:
        return 0.0
    across, down = (
        max(0.0, min(a + p / 2, b + q / 2) - max(a - p / 2, b - q / 2))
        for a, p, b, q in ((one.cx, one.w, two.cx, two.w), (one.cy, one.h, two.cy, two.h))
    )
    both = across * down
    either = one.w * one.h + two.w * two.h - both
    return both / either if either > 0 else 0.0


def cut(image: PIL.Image.Image, box: Box | None) -> PIL.Image.Image:
    """What lies in a box; a white pixel where there is nothing."""
    if box is None:
        return PIL.Image.new("RGB", (1, 1), "white")
    left, right = (round((box.cx + sign * box.w / 2) * image.width) for sign in (-1, 1))
    top, bottom = (round((box.cy + sign * box.h / 2) * image.height) for sign in (-1, 1))
    return image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


def words(box: Box | None) -> str:
    """A box in words."""
    return "no box" if box is None else f"{box.cx:.2f} {box.cy:.2f} {box.w:.2f} {box.h:.2f}"
