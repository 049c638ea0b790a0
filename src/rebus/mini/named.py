"""Pictures of one thing with its name.

Dimension key: N pictures · I pictures of a batch · Q names · T width of a sentence vector
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rebus.data.pictures import load_pictures, plain_rows
from rebus.mini.bank import cached
from rebus.mini.moving import moved
from rebus.mini.sentences import sentence_vectors


@dataclass(frozen=True)
class Named:
    """Pictures of a split without skin tones and genders, whose names training knows."""

    images_N3HW: Tensor
    """uint8"""
    name_N: Tensor
    """The name of each, a row of `vectors_QT`."""
    vectors_QT: Tensor
    """Sentence vectors of all trained names."""
    names: list[str]
    """The trained names."""

    def __len__(self) -> int:
        return len(self.images_N3HW)

    def pixels(self, indices: Tensor) -> Tensor:
        """The pictures as float32 [I, 3, H, W] in −1..1."""
        return self.images_N3HW[indices].float() / 127.5 - 1

    def copies(self, i: np.ndarray, generator: torch.Generator) -> Tensor:
        """Pictures by their numbers in a row of copies: first all as they are, then all moved, and so on."""
        pixels_I3HW = self.pixels(torch.from_numpy(i % len(self)))
        again_I = torch.from_numpy(i >= len(self))
        if again_I.any():
            pixels_I3HW[again_I] = moved(pixels_I3HW[again_I], generator)
        return pixels_I3HW


def load_named(work: Path, split: str) -> Named:
    """Those of `split` under `work/emoji`; the names are the trained ones in every split."""
    pictures = load_pictures(work / "emoji")
    concepts = sorted({pictures.concept[row] for row in plain_rows(pictures, "train")})
    labels = {pictures.concept[row]: pictures.concept_label[row] for row in plain_rows(pictures, "train")}
    number = {concept: i for i, concept in enumerate(concepts)}
    rows = [row for row in plain_rows(pictures, split) if pictures.concept[row] in number]

    texts = [labels[concept] for concept in concepts]
    made_of = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    vectors_QT = cached(work / "cache" / "names.npy", lambda: sentence_vectors(texts), of=made_of)
    images = [np.asarray(pictures.image(row, 64)) for row in rows] or np.zeros((0, 64, 64, 3), np.uint8)
    return Named(
        torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([number[pictures.concept[row]] for row in rows], dtype=torch.int64),
        torch.from_numpy(np.array(vectors_QT)).float(),
        texts,
    )
