"""First rows for the words that images are written with, and a first way in for vectors that images are read as, from the
captions of images in which they occur.

Dimension key: I images · K codes of the codebook · T tokens of all images · C width of a token · V words ·
D language-model width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rebus.nn.text_tokenizer import TextTokenizer


@torch.no_grad()
def rows_from_captions(
    table_VD: Tensor, text: TextTokenizer, counts_IK: Tensor, captions: Sequence[str], *, ridge: float = 10.0
) -> tuple[Tensor, Tensor]:
    """First input and output rows for the codes, each [K, D], from images whose captions are known; `counts_IK` says how
    often each code occurs in each image.

    A caption is the mean of its words' rows. The input row of a code is what it adds to the caption when all codes of an
    image are summed (ridge regression); the output row is the mean caption of the images in which it occurs. Both
    have the mean and the root-mean-square distance from it that ordinary words have.
    """
    captions_ID = caption_vectors(table_VD, text, captions)
    towards_KD = counts_IK.T @ captions_ID
    gram_KK = counts_IK.T @ counts_IK + ridge * torch.eye(counts_IK.shape[1])
    input_KD = torch.linalg.solve(gram_KK, towards_KD)
    output_KD = towards_KD / counts_IK.sum(0).clamp(min=1)[:, None]
    centre_D, spread = words_at(table_VD)
    made = [centre_D + x * (spread / x.square().sum(1).mean().sqrt()) for x in (input_KD, output_KD)]
    return made[0], made[1]


@torch.no_grad()
def linear_from_captions(
    table_VD: Tensor,
    text: TextTokenizer,
    x_TC: Tensor,
    lengths: Sequence[int],
    captions: Sequence[str],
    *,
    ridge: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """First weight [D, C] and bias [D] of a linear layer from tokens of images, whose captions are known, to the language
    model; `lengths` says how many of `x_TC` are each image's.

    The mean of an image's vectors points to its caption, the mean of its words' rows (ridge regression; `ridge` is a share
    of the mean variance). The vectors of all images have the mean and the root-mean-square distance from it that ordinary
    words have.
    """
    x_IC = torch.stack([part.mean(0) for part in x_TC.float().split(list(lengths))])
    centre_C = x_IC.mean(0)
    x_IC = x_IC - centre_C
    gram_CC = x_IC.T @ x_IC
    damped_CC = gram_CC + ridge * gram_CC.diagonal().mean() * torch.eye(len(gram_CC))
    weight_CD = torch.linalg.solve(damped_CC, x_IC.T @ caption_vectors(table_VD, text, captions))
    centre_D, spread = words_at(table_VD)
    made_TD = (x_TC.float() - centre_C) @ weight_CD
    weight_CD *= spread / made_TD.square().sum(1).mean().sqrt()
    return weight_CD.T, centre_D - centre_C @ weight_CD


def caption_vectors(table_VD: Tensor, text: TextTokenizer, captions: Sequence[str]) -> Tensor:
    """The mean of its words' rows for each caption, less that of all captions: [I, D]."""
    table_VD = table_VD.float()
    captions_ID = torch.stack([table_VD[text.encode(" " + caption)].mean(0) for caption in captions])
    return captions_ID - captions_ID.mean(0)


def words_at(table_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Where ordinary words lie: their mean [D], and their root-mean-square distance from it."""
    centre_D = table_VD.float().mean(0)
    return centre_D, (table_VD.float() - centre_D).square().sum(1).mean().sqrt()
