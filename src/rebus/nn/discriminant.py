"""Directions along which things of one name are alike and things of different names are not (linear discriminant analysis).

Dimension key: T vectors · Q names · C width · P directions
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def discriminant(x_TC: Tensor, name_T: Tensor, directions: int, *, ridge: float = 0.02) -> Tensor:
    """The `directions` [C, P] in which the means of names vary most against how vectors of one name do, the latter with variance 1
    along each: distance along them says how unlike two names are. `ridge`, a share of the mean variance, is added to what varies
    within names, of which few vectors say little."""
    x_TC = (x_TC - x_TC.mean(0)).float()
    names = int(name_T.max()) + 1
    hits_Q1 = torch.bincount(name_T, minlength=names).clamp(min=1)[:, None]
    mean_QC = torch.zeros(names, x_TC.shape[1], device=x_TC.device).index_add_(0, name_T, x_TC) / hits_Q1
    own_TC = x_TC - mean_QC[name_T]
    within_CC = own_TC.T @ own_TC / len(x_TC)
    within_CC += ridge * within_CC.diagonal().mean() * torch.eye(len(within_CC), device=x_TC.device)
    variance_C, along_CC = torch.linalg.eigh(within_CC)
    white_CC = along_CC / variance_C.sqrt()
    weighted_QC = (mean_QC * hits_Q1.sqrt()) @ white_CC
    most_CC = torch.linalg.eigh(weighted_QC.T @ weighted_QC).eigenvectors
    return white_CC @ most_CC[:, -directions:]
