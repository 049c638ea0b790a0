"""Every part of an image read by a linear layer of its own, and added to what was read of the parts before it.

One linear layer for all parts and a mean over them say of an image only what parts say on the average, wherever they lie: of the mini
vision encoder's patches a ridge regression of the mean names 54 % of 13,000 trained pictures and 8 % of 144 others, of sixteen parts side
by side 99 and 38 %. (Ours; in the papers a language model of 13 billion weights puts parts together.)

Dimension key: V views · I images · N vectors of a view or image, a square grid · S parts, a square grid · T kept vectors of all
images · C width · R rank · D width that is read
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.nn.running_sums import running_totals


class PartReadings(nn.Module):
    """x_VNC → x_VSD: up to each part the sum of what was read, the last says all. It begins as zeros.

    With a `rank` the layers of all parts lead to as many numbers, and one layer from these on.
    """

    def __init__(self, grid: int, width: int, out_width: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.weight_SDC = nn.Parameter(torch.zeros(grid**2, rank or out_width, width))
        self.up_DR = None if rank is None else nn.Parameter(torch.zeros(out_width, rank))
        self.bias_D = nn.Parameter(torch.zeros(out_width))

    def forward(self, x_VNC: Tensor) -> Tensor:
        """The vectors of each view's square grid, row by row."""
        read_VSD = torch.einsum("vsc,sdc->vsd", parts(x_VNC, self.grid).to(self.weight_SDC), self.weight_SDC)
        return self._up(read_VSD.float().cumsum(1).to(read_VSD.dtype))

    def kept(self, x_TC: Tensor, keep_IN: Tensor) -> Tensor:
        """Of images of which some vectors are kept, these end to end → x_TD: up to each the sum of what was read; those of one part
        are read as their mean."""
        part_T, share_T = kept_parts(keep_IN, self.grid)
        x_TC = x_TC.to(self.weight_SDC) * share_T[:, None].to(self.weight_SDC)
        order_T = part_T.argsort(stable=True)
        counts = part_T.bincount(minlength=self.grid**2).tolist()
        read = [
            x_SC @ weight_DC.T for x_SC, weight_DC in zip(x_TC[order_T].split(counts), self.weight_SDC, strict=True)
        ]
        read_TD = torch.cat(read)[order_T.argsort()]
        return self._up(running_totals(read_TD, keep_IN.sum(1)))

    @torch.no_grad()
    def begin(self, weight_SDC: Tensor, bias_D: Tensor, scale_SC: Tensor) -> None:
        """Sets the layers, or where there is a rank what comes nearest to them for vectors of this deviation."""
        self.bias_D.copy_(bias_D)
        if self.up_DR is None:
            self.weight_SDC.copy_(weight_SDC)
            return
        rank, flat_DX = self.up_DR.shape[1], (weight_SDC * scale_SC[:, None]).transpose(0, 1).flatten(1)
        up_DR, size_R, _ = torch.linalg.svd(flat_DX, full_matrices=False)
        # both sides of one size, so that they learn at one rate
        up_DR, root_R = up_DR[:, :rank], size_R[:rank].sqrt()
        self.up_DR.copy_(up_DR * root_R)
        self.weight_SDC.copy_(torch.einsum("dr,sdc->src", up_DR / root_R, weight_SDC))

    def _up(self, read_D: Tensor) -> Tensor:
        return (read_D if self.up_DR is None else read_D @ self.up_DR.T) + self.bias_D


def kept_parts(keep_IN: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Of all kept vectors of square grids, image by image: the part in which each lies, and one divided by how many are kept in it."""
    side = round(keep_IN.shape[1] ** 0.5)
    along = torch.arange(side, device=keep_IN.device) * grid // side
    part_IN = (along[:, None] * grid + along).flatten().expand(len(keep_IN), -1)
    image_I1 = torch.arange(len(keep_IN), device=keep_IN.device)[:, None]
    own_T = (image_I1 * grid**2 + part_IN)[keep_IN]
    hits_X = own_T.bincount(minlength=len(keep_IN) * grid**2)
    return part_IN[keep_IN], 1 / hits_X[own_T]


def parts(x_VNC: Tensor, grid: int) -> Tensor:
    """The means of `grid` x `grid` parts of a square grid of vectors, [V, S, C]."""
    side = round(x_VNC.shape[1] ** 0.5)
    x_VChw = rearrange(x_VNC, "v (h w) c -> v c h w", h=side)
    return rearrange(F.adaptive_avg_pool2d(x_VChw, grid), "v c h w -> v (h w) c")
