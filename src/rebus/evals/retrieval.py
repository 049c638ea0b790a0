"""Retrieval: does a system's own image embedding find the text of an image among others, and the text its image?

Dimension key: I images and their texts · C width of the shared space
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rebus.data.wording import named
from rebus.document import Image
from rebus.evals.exam import Exam
from rebus.evals.figures import Figure, Found, Sample, compare
from rebus.evals.nearest import choose


@runtime_checkable
class Embeds(Protocol):
    """A tokenizer that lays images and texts in one space, if its weights hold what that needs."""

    @property
    def embeds(self) -> bool:
        """Whether they do."""
        ...

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """Images with pixels → unit vectors [I, C]."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts → unit vectors [I, C]."""
        ...


def retrieval(exam: Exam) -> Iterator[Found]:
    """`retrieval/…`: text_r_at_1 and _5 (the text of an image), image_r_at_1 and _5 (the image of a text), among pictures
    of as many different names. Yields nothing for a system that offers no embeddings."""
    tokenizer = exam.system.tokenizer
    if not isinstance(tokenizer, Embeds) or not tokenizer.embeds:
        return
    pictures, config = exam.pictures, exam.config
    rows, seen = [], set()
    for row in choose(pictures, config.split, len(pictures), config.choice):
        if named(pictures, row) not in seen and len(rows) < config.n:
            rows.append(row)
            seen.add(named(pictures, row))
    images = [Image(pictures.image(row, 64)) for row in rows]
    texts = [named(pictures, row) for row in rows]
    with torch.inference_mode():
        parts = [
            tokenizer.embed_images([images[number] for number in numbers]).float().cpu()
            for numbers in exam.batches("embedding pictures", len(images))
        ]
        image_IC, text_IC = torch.cat(parts), tokenizer.embed_texts(texts).float().cpu()
    yield from retrieval_figures(image_IC, text_IC)
    best = (image_IC @ text_IC.T).argmax(1).tolist()
    for i, place in list(enumerate(best))[: config.samples]:
        pixels = images[i].pixels
        yield Sample(
            "retrieval",
            asked="the text of this picture",
            wanted=texts[i],
            said=texts[place],
            score=float(place == i),
            pictures=() if pixels is None else (("shown", pixels),),
        )


def retrieval_figures(image_IC: Tensor, text_IC: Tensor) -> Iterator[Figure]:
    """The figures of unit vectors whose rows belong together."""
    count = len(image_IC)
    likeness_II = image_IC @ text_IC.T
    for what, scores_II in (("text", likeness_II), ("image", likeness_II.T)):
        order = scores_II.argsort(dim=1, descending=True).tolist()
        for k in (1, 5):
            yield compare(
                f"retrieval/{what}_r_at_{k}",
                lambda found, wanted: float(wanted in found),
                [[places[:k] for places in order]],
                list(range(count)),
                chance=min(1.0, k / count),
                ceiling=1.0,
                note=f"among {count}; ceiling: every text belongs to one picture alone",
            )
