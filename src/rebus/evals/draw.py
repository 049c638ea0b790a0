"""Drawing: is what was drawn recognised as what was asked for, among real pictures of 200 names?"""

from __future__ import annotations

from collections.abc import Iterator

import PIL.Image

from rebus.data.wording import named, style_name
from rebus.document import Document, Message, user
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.naming import random_trained
from rebus.evals.nearest import choose
from rebus.evals.nearest import plain_rows as plain

BLANK = PIL.Image.new("RGB", (64, 64), "white")
"""Stands for a picture that was asked for and did not come."""


def draw(exam: Exam) -> Iterator[Found]:
    """`draw/…`: r_at_1 and r_at_5 (is the nearest real picture, or one of the five nearest names, of the concept asked
    for?), style (is the nearest real picture drawn in the style asked for?).

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
    real = gallery.nearest(x_IC, without=rows)
    random = random_trained(exam, len(rows))
    chosen = gallery.nearest(exam.real.vectors(random))
    concepts = [pictures.concept[row] for row in rows]
    among = f"among {gallery.names} names ({len(gallery.rows)} real pictures)"
    note = f"{among}; chance: a random trained picture; ceiling: the real picture that was asked for"

    def same_concept(found: int, concept: str) -> float:
        return float(pictures.concept[found] == concept)

    yield compare("draw/r_at_1", same_concept, nearest, concepts, chance=chosen, ceiling=real, note=note)
    ranks = [gallery.ranks(x) for x in vectors]
    yield compare(
        "draw/r_at_5",
        lambda rank, concept: float(rank[concept] <= 5),
        ranks,
        concepts,
        chance=gallery.ranks(exam.real.vectors(random)),
        ceiling=gallery.ranks(x_IC, without=rows),
        note=note,
    )
    yield compare(
        "draw/style",
        lambda found, row: float(style_name(pictures, found) == style_name(pictures, row)),
        nearest,
        rows,
        chance=chosen,
        ceiling=real,
        note=note,
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


def picture(message: Message) -> PIL.Image.Image:
    """The first drawn picture of a reply; a blank one where there is none."""
    return next((image.pixels for image in message.images if image.pixels is not None), BLANK)
