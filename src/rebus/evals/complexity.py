"""How much there is to see in a picture, without a network; and how two quantities go together.

Dimension key: I pictures · h w height and width
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from torch import Tensor

SIDE = 64
"""Side in pixels that pictures are brought to before they are measured."""


def png_bytes(pictures: Sequence[PIL.Image.Image]) -> Tensor:
    """Bytes that each picture takes as a PNG of 64 x 64, [I]."""
    sizes = []
    for picture in pictures:
        buffer = io.BytesIO()
        _small(picture).save(buffer, "PNG", optimize=True)
        sizes.append(float(buffer.tell()))
    return torch.tensor(sizes)


def gradient_energy(pictures: Sequence[PIL.Image.Image]) -> Tensor:
    """Of each picture at 64 x 64 the mean squared difference of neighbours in brightness (0..1), across and down, [I]."""
    energies = []
    for picture in pictures:
        grey_hw = np.asarray(_small(picture).convert("L"), np.float32) / 255
        across, down = np.diff(grey_hw, axis=1), np.diff(grey_hw, axis=0)
        energies.append(float((across**2).mean() + (down**2).mean()))
    return torch.tensor(energies)


def _small(picture: PIL.Image.Image) -> PIL.Image.Image:
    picture = picture.convert("RGB")
    return picture if picture.size == (SIDE, SIDE) else picture.resize((SIDE, SIDE), PIL.Image.Resampling.BOX)


def correlation(a_I: Tensor, b_I: Tensor) -> float:
    """Pearson's; 0 where one of the two does not vary."""
    a_I, b_I = a_I.double() - a_I.double().mean(), b_I.double() - b_I.double().mean()
    scale = (a_I.square().sum() * b_I.square().sum()).sqrt()
    return 0.0 if scale < 1e-9 else ((a_I * b_I).sum() / scale).item()
