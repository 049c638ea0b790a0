"""What pictures are called, and the simplest way to name one: call it what the most similar trained picture is called.

Dimension key: I pictures · G trained pictures · S tokens of the vision encoder · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.data.pictures import Pictures, plain_rows
from rebus.data.wording import noun
from rebus.document import Image
from rebus.evals.exam import Exam


@runtime_checkable
class SeesFeatures(Protocol):
    """A tokenizer whose vision encoder can be asked alone."""

    def pixels(self, images: Sequence[Image]) -> Tensor:
        """Images → normalised pixels_I3hw on the CPU."""
        ...

    def features(self, pixels_I3hw: Tensor) -> Tensor:
        """Normalised pixels → x_ISC."""
        ...


def names_of(pictures: Pictures, row: int) -> tuple[str, ...]:
    """The concept's label, the picture's own (`woman firefighter`), and how its label is said in a sentence."""
    label = pictures.label[row]
    said = noun(label, pictures.group[row], pictures.subgroup[row])
    return tuple(dict.fromkeys((pictures.concept_label[row], label, said)))


def nearest_trained(exam: Exam, rows: Sequence[int]) -> tuple[list[int], str]:
    """For each picture the most similar other one of split `train`, and by what: by the features of the system's own
    vision encoder where its tokenizer offers them, else by the scorer's among the names of the exam's gallery."""
    tokenizer = exam.system.tokenizer
    if not isinstance(tokenizer, SeesFeatures):
        real = exam.gallery(rows)
        near = real.nearest(exam.real.vectors(rows), without=rows)
        return near, f"the nearest picture of {real.names} names by the scorer's features"
    trained = plain_rows(exam.pictures, "train")
    x_GC, x_IC = _vision(exam, tokenizer, trained), _vision(exam, tokenizer, rows)
    middle_C = x_GC.mean(0)
    likeness_IG = F.normalize(x_IC - middle_C, dim=-1) @ F.normalize(x_GC - middle_C, dim=-1).T
    place = {row: g for g, row in enumerate(trained)}
    for i, row in enumerate(rows):
        if row in place:
            likeness_IG[i, place[row]] = -torch.inf
    near = [trained[g] for g in likeness_IG.argmax(1).tolist()]
    return near, f"the nearest of {len(trained)} trained pictures by the system's own vision features"


@torch.inference_mode()
def _vision(exam: Exam, tokenizer: SeesFeatures, rows: Sequence[int]) -> Tensor:
    """[I, C]: the vision encoder's vectors, averaged over the picture."""
    device = next((p.device for p in getattr(tokenizer, "parameters", list)()), torch.device("cpu"))
    found = []
    for numbers in exam.batches("vision features of real pictures", len(rows)):
        images = [Image(exam.pictures.image(rows[number], 64)) for number in numbers]
        found.append(tokenizer.features(tokenizer.pixels(images).to(device)).mean(1).float().cpu())
    return torch.cat(found)


def random_trained(exam: Exam, count: int) -> list[int]:
    """Pictures of split `train` that have nothing to do with what is asked."""
    rows = plain_rows(exam.pictures, "train")
    return Random(f"random names {exam.config.choice}").choices(rows, k=count)
