"""Drawing: is what was drawn recognised as what was asked for, among real pictures of 200 names?

Dimension key: I drawings · C feature width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import PIL.Image
from torch import Tensor

from rebus.data.pictures import plain_rows as plain
from rebus.data.wording import named, style_name
from rebus.document import Document, Message, user
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.nearest import choose

BLANK = PIL.Image.new("RGB", (64, 64), "white")
"""Stands for a picture that was asked for and did not come."""


def draw(exam: Exam) -> Iterator[Found]:
    """`draw/…`: r_at_1 and r_at_5 (is the nearest real picture, or one of the five nearest names, of the concept asked
    for?), style (of the real pictures of that concept in all styles, is the nearest in the style asked for?).

    What is asked about is known to training by name where the split has such pictures; in split `concepts` none is, and
    the gallery holds the unseen pictures themselves.
    """
    pictures, config = exam.pictures, exam.config
    known = {pictures.concept[row] for row in plain(pictures, "train")}
    some = any(pictures.concept[row] in known for row in plain(pictures, config.split))
    rows = choose(
        pictures, config.split, config.n, config.choice, lambda row: not some or pictures.concept[row] in known
    )
    asked = [f"Draw {named(pictures, row)} in {style_name(pictures, row)} style." for row in rows]
    documents = [Document((user(text),)) for text in asked]
    seeds = exam.seeds("image")
    drawn = [[picture(m) for m in exam.replies("drawings", documents, "image", seed)] for seed in seeds]

    gallery = exam.gallery(rows)
    x_IC = exam.real.vectors(rows)
    vectors = [exam.look(run) for run in drawn]
    nearest = [gallery.nearest(x) for x in vectors]
    random = Random(f"chance {config.choice}").choices(gallery.rows, k=len(rows))
    random_IC = exam.real.vectors(random)
    concepts = [pictures.concept[row] for row in rows]
    note = (
        f"among {gallery.names} names ({len(gallery.rows)} real pictures); chance: a random one of these; "
        "ceiling: the real picture that was asked for, itself left out of the names"
    )

    def same_concept(found: int, concept: str) -> float:
        return float(pictures.concept[found] == concept)

    real = gallery.nearest(x_IC, without=rows)
    yield compare("draw/r_at_1", same_concept, nearest, concepts, chance=random, ceiling=real, note=note)
    yield compare(
        "draw/r_at_5",
        lambda rank, concept: float(rank[concept] <= 5),
        [gallery.ranks(x) for x in vectors],
        concepts,
        chance=gallery.ranks(random_IC),
        ceiling=gallery.ranks(x_IC, without=rows),
        note=note,
    )
    styles = all_styles(exam, rows)
    several = [i for i, row in enumerate(rows) if len(styles[row]) > 1]
    yield compare(
        "draw/style",
        lambda x_C, row: float(nearest_style(exam, x_C, styles[row]) == style_name(pictures, row)),
        [[x[i] for i in several] for x in vectors],
        [rows[i] for i in several],
        chance=[random_IC[i] for i in several],
        ceiling=[x_IC[i] for i in several],
        note="things that there are in several styles; chance: a random real picture; ceiling: the one that was asked for",
    )
    for i, row in list(enumerate(rows))[: config.samples]:
        near = nearest[0][i]
        yield Sample(
            "draw",
            asked=asked[i],
            wanted=pictures.concept_label[row],
            said=f"nearest: {pictures.concept_label[near]} ({style_name(pictures, near)})",
            score=same_concept(near, concepts[i]),
            seed=seeds[0],
            pictures=(("drawn", drawn[0][i]), ("nearest", pictures.image(near)), ("asked for", pictures.image(row))),
        )


def all_styles(exam: Exam, rows: Sequence[int]) -> dict[int, list[int]]:
    """For each row the pictures of the same concept in all styles, whatever their split, itself among them."""
    pictures = exam.pictures
    of_concept: dict[str, list[int]] = {pictures.concept[row]: [] for row in rows}
    for split in ("train", "val", "pairs", "concepts"):
        for row in plain(pictures, split):
            if pictures.concept[row] in of_concept:
                of_concept[pictures.concept[row]].append(row)
    found = {}
    for row in rows:
        others = {style_name(pictures, other): other for other in of_concept[pictures.concept[row]]}
        found[row] = list((others | {style_name(pictures, row): row}).values())
    return found


def nearest_style(exam: Exam, x_C: Tensor, rows: Sequence[int]) -> str:
    """The style of the nearest of some real pictures."""
    return style_name(exam.pictures, rows[int((exam.real.vectors(rows) @ x_C).argmax())])


def picture(message: Message) -> PIL.Image.Image:
    """The first drawn picture of a reply; a blank one where there is none."""
    return next((image.pixels for image in message.images if image.pixels is not None), BLANK)
