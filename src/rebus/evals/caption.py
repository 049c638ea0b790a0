"""Captions: does the answer to `What is in this picture?` hold the name of what is shown?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import PIL.Image

from rebus.data.phrases import SAY_WHAT, say
from rebus.data.pictures import plain_rows
from rebus.data.wording import named, style_name
from rebus.document import Document, Image, user
from rebus.evals.cider import Cider
from rebus.evals.exam import Exam, generator
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.naming import names_of, nearest_trained, random_trained
from rebus.evals.nearest import choose
from rebus.evals.wordmatch import holds_any
from rebus.visual import Codes


def caption(exam: Exam) -> Iterator[Found]:
    """`caption/…` of pictures as the system reads them; see `captions`."""
    yield from captions(exam, "caption", lambda pictures: [Image(picture) for picture in pictures])


def caption_from_codes(exam: Exam) -> Iterator[Found]:
    """`caption_from_codes/…`: the same questions about the same pictures, read as the codes that the system would write them
    with. Yields nothing for a system that reads codes anyway, or writes none."""

    def coded(pictures: Sequence[PIL.Image.Image]) -> list[Image]:
        tokens = exam.encode(pictures)
        return [Image(picture, understood=token) for picture, token in zip(pictures, tokens, strict=True)]

    if exam.system.tokenizer is None:
        return
    row = choose(exam.pictures, exam.config.split, 1, exam.config.choice)[0]
    (seen,) = exam.system.tokenizer.encode(
        [Image(exam.pictures.image(row, 64))], {"understanding", "generation"}, generators=[generator(0, 0)]
    )
    if isinstance(seen.generated, Codes) and not isinstance(seen.understood, Codes):
        yield from captions(exam, "caption_from_codes", coded)


def captions(exam: Exam, task: str, read: Callable[[Sequence[PIL.Image.Image]], Sequence[Image]]) -> Iterator[Found]:
    """`task/…` of pictures as `read` hands them to the system: holds_label (whole words of the concept's label, or of the picture's own), holds_keyword (that, or one
    of its keywords), cider (against the sentences that the data says of it); in a split that holds both, holds_label_known
    and holds_label_unseen for concepts that were and were not trained."""
    pictures, config = exam.pictures, exam.config
    rows = choose(pictures, config.split, config.n, config.choice)
    shown = read([pictures.image(row, 64) for row in rows])
    documents = [Document((user(image, config.question),)) for image in shown]
    seeds = exam.seeds("text")
    runs = [
        [m.text for m in exam.replies(task.replace("_", " ").replace("caption", "captions"), documents, "text", seed)]
        for seed in seeds
    ]

    near, how = nearest_trained(exam, rows)
    nearest = [named(pictures, row) for row in near]
    random = [named(pictures, row) for row in random_trained(exam, len(rows))]
    names = [names_of(pictures, row) for row in rows]
    keywords = [(*names_of(pictures, row), *pictures.keywords[row]) for row in rows]
    note = f"chance: the name of a random trained picture; ceiling: the name of {how}"
    for what, allowed in (("holds_label", names), ("holds_keyword", keywords)):
        yield compare(
            f"{task}/{what}",
            lambda answer, wanted: float(holds_any(answer, wanted)),
            runs,
            allowed,
            chance=random,
            ceiling=nearest,
            note=note,
        )
    trained = {pictures.concept[row] for row in plain_rows(pictures, "train")}
    for what, inside in (("known", True), ("unseen", False)):
        some = [i for i, row in enumerate(rows) if (pictures.concept[row] in trained) == inside]
        if 0 < len(some) < len(rows):
            yield compare(
                f"{task}/holds_label_{what}",
                lambda answer, wanted: float(holds_any(answer, wanted)),
                [[run[i] for i in some] for run in runs],
                [names[i] for i in some],
                chance=[random[i] for i in some],
                ceiling=[nearest[i] for i in some],
                note="things that training has " + ("seen in other styles" if inside else "never seen"),
            )
    rng = Random("captions")
    references = [references_of(named(pictures, row), style_name(pictures, row)) for row in rows]
    cider = Cider(references)
    yield compare(
        f"{task}/cider",
        cider.score,
        runs,
        references,
        chance=[say(SAY_WHAT, rng, a=name, style="Noto") for name in random],
        ceiling=[say(SAY_WHAT, rng, a=named(pictures, row), style=style_name(pictures, row)) for row in rows],
        note="0 to 10; chance: a sentence with a random trained name; ceiling: a sentence of the data with the right one",
    )
    for row, answer, wanted, document in list(zip(rows, runs[0], names, documents, strict=True))[: config.samples]:
        picture = document.images[0].pixels
        yield Sample(
            task,
            asked=config.question,
            wanted=pictures.concept_label[row],
            said=answer,
            score=float(holds_any(answer, wanted)),
            seed=seeds[0],
            pictures=() if picture is None else (("shown", picture),),
        )


def references_of(name: str, style: str) -> list[str]:
    """The sentences that the data says of a picture."""
    return [template.format(a=name, style=style) for template in dict.fromkeys(SAY_WHAT)]
