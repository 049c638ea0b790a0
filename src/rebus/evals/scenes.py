"""Drawn scenes: as many things as asked for, where they were asked for, on the colour asked for (after GenEval,
2310.11513, with `detect.py` in place of a trained detector)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import PIL.Image

from rebus.data.backdrops import COLOURS, Backdrop
from rebus.data.pictures import Pictures
from rebus.data.scenes import Layout, Scene, Things, describe, random_scene, render
from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.evals.detect import background, colour_name, regions
from rebus.evals.draw import picture
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, against_wrong, compare
from rebus.evals.nearest import Gallery, RealPictures, gallery

Kind = Literal["count", "position", "colour"]
KINDS: tuple[Kind, ...] = ("count", "position", "colour")
NAMES = 40
"""Of how many names the things in scenes are; a region is named as one of these."""
THING_SIDE = 28
"""Side in pixels of the real pictures that regions are compared with: a thing in a scene of 64 pixels has about that."""
APART = 0.08
"""How far apart, as a share of the picture, centres must lie for one thing to be left of, or above, the other."""


@dataclass(frozen=True)
class Wanted:
    """A scene that is asked for."""

    kind: Kind
    scene: Scene
    text: str
    concepts: tuple[str, ...]
    """of every thing, in the order of `scene.placed`"""
    colour: str


@dataclass(frozen=True)
class Thing:
    """A region that has been named."""

    concept: str
    x: float
    """centre, as a share of the width"""
    y: float
    """centre, as a share of the height"""


@dataclass(frozen=True)
class Seen:
    """What the detector finds in a picture."""

    things: tuple[Thing, ...]
    colour: str
    """of the background"""

    def count(self, concept: str) -> int:
        """How many regions have this name."""
        return sum(thing.concept == concept for thing in self.things)


def scenes(exam: Exam) -> Iterator[Found]:
    """`scenes/…`: count (as many regions named as asked for), count_any (as many regions at all), things (both are
    there), position (both are there, on the sides asked for), colour (of the background)."""
    pictures, config = exam.pictures, exam.config
    wanted = requests(pictures, config.split, config.n, config.choice)
    documents = [Document((user(w.text),)) for w in wanted]
    seeds = exam.seeds("image")
    drawn = [[picture(m) for m in exam.replies("scenes", documents, "image", seed)] for seed in seeds]
    rows = sorted({placed.row for w in wanted for placed in w.scene.placed})
    concepts = {pictures.concept[row] for row in rows}
    small = gallery(RealPictures(pictures, exam.look, THING_SIDE), rows, len(concepts), config.choice)
    runs = [look_at(exam, run, small) for run in drawn]
    real = [render(pictures, w.scene).resize((64, 64), PIL.Image.Resampling.BOX) for w in wanted]
    ceiling = look_at(exam, real, small)
    note = f"{small.names} names of things; chance: the real scenes of other requests; ceiling: its own real scene"
    for what, kind, score in MEASURES:
        which = [i for i, w in enumerate(wanted) if w.kind == kind]
        asked, right = [wanted[i] for i in which], [ceiling[i] for i in which]
        yield compare(
            f"scenes/{what}",
            score,
            [[run[i] for i in which] for run in runs],
            asked,
            chance=against_wrong(score, [right], asked),
            ceiling=right,
            note=note,
        )
    names = dict(zip(pictures.concept, pictures.concept_label, strict=True))
    scores = {kind: score for _, kind, score in MEASURES}
    for i, w in list(enumerate(wanted))[: config.samples]:
        seen = runs[0][i]
        said = ", ".join(names[thing.concept] for thing in seen.things)
        yield Sample(
            "scenes",
            asked=w.text,
            wanted=f"{w.kind}: {', '.join(names[c] for c in w.concepts)} on {w.colour}",
            said=f"{said or 'nothing'} on {seen.colour}",
            score=scores[w.kind](seen, w),
            seed=seeds[0],
            pictures=(("drawn", drawn[0][i]), ("so in the data", real[i])),
        )


def requests(pictures: Pictures, split: str, n: int, seed: int) -> list[Wanted]:
    """`n` scenes to ask for, as many of each kind. Raises RebusError for a split with too few things for scenes."""
    rng = Random(f"scenes {split} {seed}")
    things = Things(pictures, split)
    concepts = sorted({pictures.concept[row] for row in things.rows})
    if len(concepts) < 2:
        raise RebusError(
            f"Scenes need two different things, but split {split!r} of {pictures!r} has {len(concepts)} that may stand "
            "in them. Build the whole set with `rebus data emoji`."
        )
    chosen = set(rng.sample(concepts, min(NAMES, len(concepts))))
    rows = [row for row in things.rows if pictures.concept[row] in chosen]
    return [_request(pictures, things, rows, KINDS[i % len(KINDS)], rng) for i in range(n)]


def _request(pictures: Pictures, things: Things, rows: list[int], kind: Kind, rng: Random) -> Wanted:
    """A scene as the data lays it out, of the things in `rows`."""
    layout: Layout = "same" if kind == "count" else "one" if kind == "colour" else rng.choice(("beside", "stacked"))
    colour = rng.choice([name for name in COLOURS if name != "white"]) if kind == "colour" else "white"
    laid_out = random_scene(things, rng, layout).placed
    first = rng.choice(rows)
    second = rng.choice([row for row in rows if pictures.concept[row] != pictures.concept[first]])
    shown = {row: new for row, new in zip(dict.fromkeys(p.row for p in laid_out), (first, second), strict=False)}
    placed = tuple(replace(p, row=shown[p.row]) for p in laid_out)
    said = [describe(pictures, Scene(layout, placed, Backdrop()), rng) for _ in range(20)]
    text = next(sentence for sentence in said if "next to" not in sentence)  # which says no side
    backdrop = Backdrop("plain", colour)
    if kind == "colour":
        text += f", on {backdrop.words}"
    return Wanted(
        kind, Scene(layout, placed, backdrop), f"Draw {text}.", tuple(pictures.concept[p.row] for p in placed), colour
    )


def look_at(exam: Exam, drawn: Sequence[PIL.Image.Image], names: Gallery) -> list[Seen]:
    """What is in each picture, its things named by the nearest picture of the gallery."""
    found = [regions(image) for image in drawn]
    flat = [region for these in found for region in these]
    nearest = iter(names.nearest(exam.look([region.cut for region in flat])) if flat else [])
    concept = exam.pictures.concept
    return [
        Seen(tuple(Thing(concept[next(nearest)], r.x, r.y) for r in these), colour_name(background(image)))
        for these, image in zip(found, drawn, strict=True)
    ]


# ---------------------------------------------------------------------------------------------- what is right


def as_many(seen: Seen, wanted: Wanted) -> float:
    """Exactly as many regions have the name asked for."""
    return float(seen.count(wanted.concepts[0]) == len(wanted.concepts))


def as_many_at_all(seen: Seen, wanted: Wanted) -> float:
    """Exactly as many regions stand out, whatever they are."""
    return float(len(seen.things) == len(wanted.concepts))


def both_things(seen: Seen, wanted: Wanted) -> float:
    """Each thing asked for is there."""
    return float(all(seen.count(concept) for concept in wanted.concepts))


def in_place(seen: Seen, wanted: Wanted) -> float:
    """The first thing is left of the second, or above it."""
    one, two = ([t for t in seen.things if t.concept == concept] for concept in wanted.concepts)
    if wanted.scene.layout == "beside":
        return float(any(a.x + APART < b.x for a in one for b in two))
    return float(any(a.y + APART < b.y for a in one for b in two))


def on_colour(seen: Seen, wanted: Wanted) -> float:
    """The background has the colour asked for."""
    return float(seen.colour == wanted.colour)


MEASURES: tuple[tuple[str, Kind, Callable[[Seen, Wanted], float]], ...] = (
    ("count_any", "count", as_many_at_all),
    ("count", "count", as_many),
    ("things", "position", both_things),
    ("position", "position", in_place),
    ("colour", "colour", on_colour),
)
