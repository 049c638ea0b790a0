"""Image → tokens → image: is it still the same picture, and at which link of the chain is what lost?

The chain has up to three links, each a ceiling of the next: the image decoder's autoencoder alone, drawing from the
vision encoder's true features, drawing from tokens. A detokenizer that offers the first two (the protocols below) has
them measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch

from rebus.evals.exam import Exam, generator
from rebus.evals.figures import Figure, Found, Sample, compare
from rebus.evals.likeness import psnr, ssim
from rebus.evals.nearest import choose
from rebus.visual import ImageSampling

Pictures = list[PIL.Image.Image]


@runtime_checkable
class HasCodec(Protocol):
    """A detokenizer whose image autoencoder can be measured alone."""

    def through_codec(self, pictures: Sequence[PIL.Image.Image]) -> Pictures:
        """The pictures, encoded to latents and decoded."""
        ...


@runtime_checkable
class DrawsFeatures(Protocol):
    """A detokenizer that can draw from what the vision encoder sees, without tokens between."""

    def draw_features(
        self,
        pictures: Sequence[PIL.Image.Image],
        *,
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Pictures:
        """The pictures, drawn from their true features."""
        ...


def reconstruct(exam: Exam) -> Iterator[Found]:
    """`reconstruct/…`: r_at_1 among the pictures asked about by the scorer's features, psnr in dB, ssim; the same under
    `reconstruct/codec/…` and `reconstruct/features/…` where the detokenizer offers them."""
    rows = choose(exam.pictures, exam.config.split, exam.config.n, exam.config.choice)
    originals = [exam.pictures.image(row, 64) for row in rows]
    detokenizer = exam.system.detokenizer
    codec: list[Figure] = []
    if isinstance(detokenizer, HasCodec):
        rebuilt: Pictures = []
        for numbers in exam.batches("autoencoder alone", len(originals)):
            rebuilt += detokenizer.through_codec([originals[number] for number in numbers])
        codec = list(rebuilt_figures(exam, "reconstruct/codec", rows, originals, [rebuilt], None))
        yield from codec
    if isinstance(detokenizer, DrawsFeatures):
        runs = [_from_features(exam, detokenizer, originals, seed) for seed in exam.config.seeds]
        yield from rebuilt_figures(exam, "reconstruct/features", rows, originals, runs, codec)
    tokens = exam.encode(originals)
    runs = [exam.draw(tokens, seed) for seed in exam.config.seeds]
    yield from rebuilt_figures(exam, "reconstruct", rows, originals, runs, codec)
    for row, original, drawn in list(zip(rows, originals, runs[0], strict=True))[: exam.config.samples]:
        yield Sample(
            "reconstruct",
            asked=exam.pictures.label[row],
            wanted="the same picture",
            said=f"{psnr(drawn, original):.1f} dB",
            score=ssim(drawn, original),
            seed=exam.config.seeds[0],
            pictures=(("original", original), ("rebuilt", drawn)),
        )


def _from_features(exam: Exam, detokenizer: DrawsFeatures, originals: Pictures, seed: int) -> Pictures:
    drawn: Pictures = []
    for numbers in exam.batches(f"drawing from features, seed {seed}", len(originals)):
        drawn += detokenizer.draw_features(
            [originals[number] for number in numbers],
            generators=[generator(seed, number) for number in numbers],
            sampling=ImageSampling(steps=exam.config.steps),
        )
    return drawn


def rebuilt_figures(
    exam: Exam,
    name: str,
    rows: Sequence[int],
    originals: Pictures,
    runs: list[Pictures],
    codec: list[Figure] | None = None,
) -> Iterator[Figure]:
    """`name/…`: r_at_1, psnr and ssim of rebuilt pictures; the ceiling is the originals themselves, or the autoencoder
    alone, whose three figures `codec` holds."""
    ceilings = [figure.value for figure in codec] if codec else [None] * 3
    above = "ceiling: the autoencoder alone" if codec else "ceiling: the originals themselves"
    x_IC = exam.real.vectors(rows)
    numbers = list(range(len(rows)))

    def found(pictures: Pictures) -> list[int]:
        return (exam.look(pictures) @ x_IC.T).argmax(1).tolist()

    yield compare(
        f"{name}/r_at_1",
        lambda one, other: float(one == other),
        [found(pictures) for pictures in runs],
        numbers,
        chance=1 / len(rows),
        ceiling=found(originals) if ceilings[0] is None else ceilings[0],
        note=f"the scorer finds the original among {len(rows)}; {above}",
    )
    average = PIL.Image.fromarray(np.mean([np.asarray(image) for image in originals], axis=0).round().astype(np.uint8))
    measures: tuple[tuple[str, Callable[[PIL.Image.Image, PIL.Image.Image], float]], ...] = (
        ("psnr", psnr),
        ("ssim", ssim),
    )
    for (what, measure), ceiling in zip(measures, ceilings[1:], strict=True):
        yield compare(
            f"{name}/{what}",
            measure,
            runs,
            originals,
            chance=[average] * len(rows),
            ceiling=originals if ceiling is None else ceiling,
            note=f"chance: the mean of all pictures; {above}",
        )
