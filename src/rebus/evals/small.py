"""Small things in a large picture: are they named better when the picture is cut into views than when it is read whole?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any, Protocol, runtime_checkable

from rebus.data.emoji_pointing import small_scene
from rebus.data.scenes import render
from rebus.data.selection import Selection
from rebus.document import Document, Image, user
from rebus.evals.exam import Exam
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.naming import names_of, random_trained
from rebus.evals.wordmatch import holds_any


@runtime_checkable
class CutsIntoViews(Protocol):
    """A tokenizer that reads an image as several views."""

    grids: tuple[tuple[int, int], ...]

    def with_grids(self, grids: tuple[tuple[int, int], ...]) -> Any:
        """The same with other grids; none: images are read whole."""
        ...


def small(exam: Exam) -> Iterator[Found]:
    """`small/…`: any_res and one_view (small things of which the answer holds the name, the picture cut into views and read
    whole). Nothing for a system that reads every image in one way."""
    tokenizer, config, pictures = exam.system.tokenizer, exam.config, exam.pictures
    if not isinstance(tokenizer, CutsIntoViews) or not tokenizer.grids:
        return
    selection = Selection(pictures, config.split)
    rng = Random(f"small {config.split} {config.choice}")
    made = [small_scene(selection, rng) for _ in range(config.n)]
    images = [render(pictures, scene) for scene, _ in made]
    documents = [
        Document((user(Image(image), f"What is {place}?"),))
        for image, (_, (place, _)) in zip(images, made, strict=True)
    ]
    rows = [placed.row for _, (_, placed) in made]
    chance = [pictures.label[row] for row in random_trained(exam, len(rows))]
    seeds = exam.seeds("text")
    whole = replace(exam, system=replace(exam.system, tokenizer=tokenizer.with_grids(())))
    for name, how in (("any_res", exam), ("one_view", whole)):
        runs = [[reply.text for reply in how.replies(f"small, {name}", documents, "text", seed)] for seed in seeds]
        yield compare(
            f"small/{name}",
            lambda text, row: float(holds_any(text, names_of(pictures, row))),
            runs,
            rows,
            chance=chance,
            ceiling=[pictures.label[row] for row in rows],
            note="things of 22 to 30 of 128 pixels; chance: the name of another trained picture",
        )
        for i, row in list(enumerate(rows))[: config.samples // 2]:
            yield Sample(
                "small",
                asked=f"{documents[i].messages[0].text} ({name})",
                wanted=pictures.label[row],
                said=runs[0][i],
                score=float(holds_any(runs[0][i], names_of(pictures, row))),
                seed=seeds[0],
                pictures=(("asked about", images[i]),),
            )
