"""Running sums and means: a part of an image is read as all that were read of it so far.

The input of the RQ-Transformer (2203.01941 section 3.2.2), for codes that add up to what they stand for (residual quantisation): the
vector of the last code is what all of them together say. Of vectors that are no code the mean is taken instead.

Dimension key: B batch · L length · I images · T vectors of all images · D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SummedWords:
    """Which words of a vocabulary are read so: `count` from `first` on. Codes that stand side by side belong together."""

    first: int
    count: int

    def among(self, ids_BL: Tensor) -> Tensor:
        """Where such words are, bool of the same shape."""
        return (ids_BL >= self.first) & (ids_BL < self.first + self.count)

    def sums(self, x_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Vectors of words, in which those of codes become running sums; float32 inside."""
        code_BL = self.among(ids_BL)
        total_BLD = (x_BLD.float() * code_BL[..., None]).cumsum(1)
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        # of each place the last before it that is no code; the sum up to there is of other images
        before_BL = torch.where(code_BL, -1, places_L).cummax(1).values
        others_BLD = total_BLD.gather(1, before_BL.clamp(min=0)[..., None].expand_as(total_BLD))
        others_BLD = others_BLD * (before_BL >= 0)[..., None]
        return torch.where(code_BL[..., None], (total_BLD - others_BLD).to(x_BLD.dtype), x_BLD)

    def open_end(self, ids: Sequence[int]) -> list[int]:
        """The codes at the end of `ids`: what the sum of a code that comes next begins with."""
        start = len(ids)
        while start and self.first <= ids[start - 1] < self.first + self.count:
            start -= 1
        return list(ids[start:])


def running_totals(x_TD: Tensor, lengths_I: Tensor) -> Tensor:
    """Vectors of images of these lengths, end to end → of each the sum of its image's up to it; float32 inside."""
    total_TD = x_TD.float().cumsum(0)
    before_ID = torch.cat([total_TD.new_zeros(1, x_TD.shape[1]), total_TD[lengths_I.cumsum(0)[:-1] - 1]])
    return (total_TD - before_ID.repeat_interleave(lengths_I, 0)).to(x_TD.dtype)


def running_means(x_TD: Tensor, lengths_I: Tensor) -> Tensor:
    """Vectors of images of these lengths, end to end → of each the mean of its image's up to it; float32 inside."""
    starts_T = (lengths_I.cumsum(0) - lengths_I).repeat_interleave(lengths_I)
    counted_T = torch.arange(len(x_TD), device=x_TD.device) - starts_T + 1
    return (running_totals(x_TD.float(), lengths_I) / counted_T[:, None]).to(x_TD.dtype)
