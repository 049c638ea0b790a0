"""Edits: is the asked change there, and is the rest as it was? One at a time, with the picture in view of the image decoder
and without; and five in a row.

Dimension key: I pictures · C feature width · h w sides in pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np
import PIL.Image

from rebus.data.backdrops import SIDE
from rebus.data.edit_chains import Step, chain
from rebus.data.edits import Edit, Edits, resized
from rebus.data.scenes import Placed
from rebus.document import Document, Image, Message, user
from rebus.evals.draw import BLANK, picture
from rebus.evals.exam import Exam, generator
from rebus.evals.figures import Found, Sample, compare
from rebus.evals.nearest import Gallery
from rebus.visual import Detokenizer, Editor, ImageSampling, Progress

NAMED = ("style", "skin_tone", "gender", "replace", "add")
"""Edits after which something is to be there that a real picture shows."""
MOST_DB = 60.0
"""A picture that is the same in every pixel is called this far from noise."""
LEAST_OUTSIDE = 0.05
"""Share of pixels outside the mask from which on what is kept is measured."""
ROUNDS = 5


def edits(exam: Exam) -> Iterator[Found]:
    """`edit/…`, each with the image decoder seeing the source and, `…_unseen`, drawing from the features alone as the first
    stage does: changed (where a change was asked, the picture is more like the target than like the source), named (there,
    the nearest real picture is of what was asked for), kept_psnr (elsewhere, dB against the source). Nothing for a system
    whose image decoder sees no source."""
    decoder, config, pictures = exam.system.detokenizer, exam.config, exam.pictures
    if not (isinstance(decoder, Editor) and decoder.edits):
        return
    asked = [Edits(pictures, config.split, seed=config.choice)[i] for i in range(config.n)]
    documents = [Document((user(Image(edit.source), edit.instruction),)) for edit in asked]
    seeds = exam.seeds("image")
    replies = [exam.replies("edits", documents, "image", seed) for seed in seeds]
    runs = {
        "": [[picture(reply) for reply in run] for run in replies],
        "_unseen": [unseen(exam, run, seed) for run, seed in zip(replies, seeds, strict=True)],
    }
    outside = [i for i, edit in enumerate(asked) if (~edit.mask_hw).mean() >= LEAST_OUTSIDE]
    new = [i for i, edit in enumerate(asked) if edit.kind in NAMED]
    rows = [asked[i].row for i in new]
    gallery = exam.gallery(rows) if rows else None
    for name, drawn in runs.items():
        yield compare(
            f"edit/changed{name}",
            lambda image, edit: float(is_changed(exam, image, edit)),
            drawn,
            asked,
            chance=[edit.source for edit in asked],
            ceiling=[edit.target for edit in asked],
            note="chance: the source as it is; ceiling: the target",
        )
        if outside:
            yield compare(
                f"edit/kept_psnr{name}",
                kept,
                [[run[i] for i in outside] for run in drawn],
                [asked[i] for i in outside],
                ceiling=[asked[i].target for i in outside],
                note=f"dB, {MOST_DB:.0f} where nothing differs; edits that leave at least a twentieth of the picture alone",
            )
        if gallery is not None:

            def nearest(
                images: Sequence[PIL.Image.Image], own: Sequence[int] | None = None, gallery: Gallery = gallery
            ) -> list[int]:
                return gallery.nearest(exam.look(images), without=own)

            yield compare(
                f"edit/named{name}",
                lambda row, target: float(pictures.concept[row] == pictures.concept[target]),
                [nearest([within(run[i], asked[i]) for i in new]) for run in drawn],
                rows,
                chance=nearest([within(asked[i].source, asked[i]) for i in new]),
                ceiling=nearest([within(asked[i].target, asked[i]) for i in new], rows),
                note="among the exam's names; chance: what is there before the edit; ceiling: the target",
            )
    for i, edit in list(enumerate(asked))[: config.samples]:
        image = runs[""][0][i]
        yield Sample(
            "edits",
            asked=edit.instruction,
            wanted=edit.kind,
            said=f"kept {kept(image, edit):.1f} dB, unseen {kept(runs['_unseen'][0][i], edit):.1f} dB",
            score=float(is_changed(exam, image, edit)),
            seed=seeds[0],
            pictures=(
                ("source", edit.source),
                ("edited", image),
                ("source unseen", runs["_unseen"][0][i]),
                ("target", edit.target),
            ),
        )


def edits_in_a_row(exam: Exam) -> Iterator[Found]:
    """`edits_in_a_row/recognised`: after five edits, each of what the one before left, the subject is still named by the
    nearest real picture at its place. Nothing for a system whose image decoder sees no source."""
    decoder, config, pictures = exam.system.detokenizer, exam.config, exam.pictures
    if not (isinstance(decoder, Editor) and decoder.edits):
        return
    material = Edits(pictures, config.split).material
    chains = [chain(material, Random(f"in a row {config.split} {config.choice} {i}"), ROUNDS) for i in range(config.n)]
    first = [resized(steps[0].edit, 64).source for steps in chains]
    seeds = exam.seeds("image")
    runs, last = [], [steps[-1].subject for steps in chains]
    shown: list[list[PIL.Image.Image]] = []
    for seed in seeds:
        documents = [Document(()) for _ in chains]
        for number in range(ROUNDS):
            for i, steps in enumerate(chains):
                begins = (Image(first[i]),) if number == 0 else ()
                documents[i] = documents[i].add(user(*begins, steps[number].edit.instruction))
            replies = exam.replies(f"edit {number + 1} of {ROUNDS}", documents, "image", seed)
            documents = [document.add(reply) for document, reply in zip(documents, replies, strict=True)]
        runs.append([picture(document.messages[-1]) for document in documents])
        shown = shown or [[picture(m) for m in document.messages if m.role == "assistant"] for document in documents]
    rows = [subject.row for subject in last]
    gallery = exam.gallery(rows)

    def nearest(images: Sequence[PIL.Image.Image], own: Sequence[int] | None = None) -> list[int]:
        cuts = [at_place(image, subject) for image, subject in zip(images, last, strict=True)]
        return gallery.nearest(exam.look(cuts), without=own)

    random = Random(f"chance {config.choice}").choices(gallery.rows, k=len(rows))
    named = [nearest(run) for run in runs]
    yield compare(
        "edits_in_a_row/recognised",
        lambda row, target: float(pictures.concept[row] == pictures.concept[target]),
        named,
        rows,
        chance=random,
        ceiling=nearest([resized(steps[-1].edit, 64).target for steps in chains], rows),
        note=f"after {ROUNDS} edits, among {gallery.names} names; ceiling: the picture as it should be",
    )
    for i, steps in list(enumerate(chains))[: config.samples]:
        yield Sample(
            "edits_in_a_row",
            asked=" ".join(step.edit.instruction for step in steps),
            wanted=pictures.label[rows[i]],
            said=f"nearest: {pictures.label[named[0][i]]}",
            score=float(pictures.concept[named[0][i]] == pictures.concept[rows[i]]),
            seed=seeds[0],
            pictures=(
                ("source", first[i]),
                *((f"edit {n}", image) for n, image in enumerate(shown[i], 1)),
                target(steps),
            ),
        )


def target(steps: Sequence[Step]) -> tuple[str, PIL.Image.Image]:
    """The picture as it should be in the end."""
    return "should be", steps[-1].edit.target


def unseen(exam: Exam, replies: Sequence[Message], seed: int) -> list[PIL.Image.Image]:
    """The first picture of each reply, drawn again without a source in view; a blank one where there is none."""
    decoder: Detokenizer | None = exam.system.detokenizer
    assert decoder is not None
    told = [next((i.generated for i in reply.images if i.generated is not None), None) for reply in replies]
    there = [(i, token) for i, token in enumerate(told) if token is not None]
    done = [BLANK] * len(told)
    for numbers in exam.batches(f"drawing edits without their source, seed {seed}", len(there)):
        some = [there[number] for number in numbers]
        drawing = decoder.decode(
            [token for _, token in some],
            sources=[None] * len(some),
            negatives=[None] * len(some),
            generators=[generator(seed, i) for i, _ in some],
            sampling=ImageSampling(steps=exam.config.steps),
        )
        for (i, _), image in zip(some, (d for d in drawing if not isinstance(d, Progress)), strict=True):
            done[i] = image
    return done


def within(image: PIL.Image.Image, edit: Edit) -> PIL.Image.Image:
    """The smallest square of a picture around where an edit may change it."""
    high, wide = np.flatnonzero(edit.mask_hw.any(1)), np.flatnonzero(edit.mask_hw.any(0))
    side = edit.source.width
    if not len(high):
        return image
    length = max(high[-1] - high[0], wide[-1] - wide[0], 1) + 1
    left = int(min(wide[0], side - length))
    top = int(min(high[0], side - length))
    scaled = image if image.width == side else image.resize((side, side))
    return scaled.crop((left, top, left + int(length), top + int(length)))


def is_changed(exam: Exam, image: PIL.Image.Image, edit: Edit) -> bool:
    """Within the mask's square the picture is more like the target than like the source."""
    own_C, target_C, source_C = exam.look([within(each, edit) for each in (image, edit.target, edit.source)])
    return float(own_C @ target_C) > float(own_C @ source_C)


def kept(image: PIL.Image.Image, edit: Edit) -> float:
    """Peak signal-to-noise ratio in dB against the source, outside the mask."""
    side = edit.source.width
    scaled = image if image.width == side else image.resize((side, side))
    one, two = (np.asarray(each.convert("RGB"), np.float64) for each in (scaled, edit.source))
    outside_hw = ~edit.mask_hw
    error = ((one - two) ** 2).mean(-1)[outside_hw].mean() if outside_hw.any() else math.nan
    return MOST_DB if error == 0 else min(MOST_DB, 10 * math.log10(255**2 / error)) if error > 0 else math.nan


def at_place(image: PIL.Image.Image, subject: Placed) -> PIL.Image.Image:
    """The square of a picture in which a thing of a scene stands."""
    scale = image.width / SIDE
    left, top = (round((at - subject.side / 2) * scale) for at in (subject.x, subject.y))
    length = max(1, round(subject.side * scale))
    return image.crop((left, top, left + length, top + length))
