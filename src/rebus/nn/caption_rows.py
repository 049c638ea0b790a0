"""First rows for the words that images are written with, from the captions of images in which they occur.

Dimension key: I images · K codes of the codebook · V words · D language-model width
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
    table_VD = table_VD.float()
    captions_ID = torch.stack([table_VD[text.encode(" " + caption)].mean(0) for caption in captions])
    captions_ID -= captions_ID.mean(0)
    towards_KD = counts_IK.T @ captions_ID
    gram_KK = counts_IK.T @ counts_IK + ridge * torch.eye(counts_IK.shape[1])
    input_KD = torch.linalg.solve(gram_KK, towards_KD)
    output_KD = towards_KD / counts_IK.sum(0).clamp(min=1)[:, None]
    centre_D = table_VD.mean(0)
    spread = (table_VD - centre_D).square().sum(1).mean().sqrt()
    made = [centre_D + x * (spread / x.square().sum(1).mean().sqrt()) for x in (input_KD, output_KD)]
    return made[0], made[1]
