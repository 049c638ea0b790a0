"""Stories: is the character of a story in every one of its pictures?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

import PIL.Image

from rebus.data.emoji_stories import COUNT_WORDS, Story, make_story, pictures_of
from rebus.data.selection import Selection
from rebus.data.wording import article
from rebus.document import Document, user
from rebus.errors import RebusError
from rebus.evals.detect import regions
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.nearest import Gallery

COUNT = 5


def story(exam: Exam) -> Iterator[Found]:
    """`story/…`: identity (pictures of a story of five in which some region is named like its character by the nearest real
    picture), whole (stories in all of whose pictures it is), count (stories of five pictures). Raises RebusError for a split
    without things that stories could be about."""
    config, pictures = exam.config, exam.pictures
    selection = Selection(pictures, config.split)
    if len(selection.things.rows) < 2:
        raise RebusError(f"Split {config.split!r} has nothing that a story could be about. Build the whole set.")
    made = [make_story(selection, Random(f"story {config.split} {config.choice} {i}"), COUNT) for i in range(config.n)]
    documents = [
        Document((user(f"Tell a story about {article(one.name)} in {COUNT_WORDS[COUNT]} pictures."),)) for one in made
    ]
    seeds = exam.seeds("any")
    runs = [exam.replies("stories", documents, "any", seed, images=COUNT) for seed in seeds]
    drawn = [[[i.pixels for i in reply.images if i.pixels is not None][:COUNT] for reply in run] for run in runs]
    rows = [one.row for one in made]
    gallery = exam.gallery(rows)
    real = [[image.pixels for image in pictures_of(selection, one, 64) if image.pixels is not None] for one in made]
    seen = [[concepts(exam, images, gallery) for images in run] for run in drawn]
    ideal = [concepts(exam, images, gallery) for images in real]
    others = ideal[1:] + ideal[:1]
    for name, score in (("identity", share), ("whole", lambda found, concept: float(share(found, concept) == 1.0))):
        yield compare(
            f"story/{name}",
            score,
            seen,
            [pictures.concept[row] for row in rows],
            chance=others,
            ceiling=ideal,
            note=f"{COUNT} pictures, among {gallery.names} names; chance: real pictures of another story; ceiling: of this one",
        )
    yield compare("story/count", lambda images, one: float(len(images) == COUNT), drawn, made, ceiling=1.0)
    for i, one in list(enumerate(made))[: config.samples]:
        yield sample(i, one, runs[0][i].text, drawn[0][i], share(seen[0][i], pictures.concept[one.row]), seeds[0])


def sample(number: int, one: Story, said: str, images: Sequence[PIL.Image.Image], score: float, seed: int) -> Sample:
    """A story as it went."""
    shown = tuple((f"picture {n}", image) for n, image in enumerate(images, 1))
    return Sample(
        "story", asked=f"a story about {one.name}", wanted=one.name, said=said, score=score, seed=seed, pictures=shown
    )


def concepts(exam: Exam, images: Sequence[PIL.Image.Image], gallery: Gallery) -> list[set[str]]:
    """Of each picture, what its regions and the whole of it look most like."""
    cuts = [[image, *(region.cut for region in regions(image))] for image in images]
    flat = [cut for these in cuts for cut in these]
    nearest = iter(gallery.nearest(exam.look(flat)) if flat else [])
    return [{exam.pictures.concept[next(nearest)] for _ in these} for these in cuts]


def share(found: Sequence[set[str]], concept: str) -> float:
    """The share of five pictures in which the concept is."""
    return sum(concept in each for each in found) / COUNT
