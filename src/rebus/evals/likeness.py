"""How alike two pictures are, pixel by pixel: PSNR and SSIM.

Dimension key: h w height and width
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import PIL.Image

MOST_DB = 100.0
"""PSNR of equal pictures, which would be infinite."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """Peak signal-to-noise ratio over all channels in dB; `one` is brought to the size of `other`."""
    a_hw3, b_hw3 = _pair(one, other, "RGB")
    error = float(((a_hw3 - b_hw3) ** 2).mean())
    return MOST_DB if error == 0 else min(MOST_DB, -10 * math.log10(error))


def ssim(one: PIL.Image.Image, other: PIL.Image.Image) -> float:
    """Structural similarity of the brightness, mean over all windows (Wang et al. 2004: Gaussian window of 11 pixels and
    deviation 1.5, K = 0.01 and 0.03, no padding). 1 for equal pictures. `one` is brought to the size of `other`."""
    a_hw, b_hw = _pair(one, other, "L")
    rows, columns = (_windows(side) for side in a_hw.shape)

    def average(x_hw: np.ndarray) -> np.ndarray:
        return rows @ x_hw @ columns.T

    mean_a, mean_b = average(a_hw), average(b_hw)
    var_a, var_b = average(a_hw * a_hw) - mean_a**2, average(b_hw * b_hw) - mean_b**2
    both = average(a_hw * b_hw) - mean_a * mean_b
    brightness = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * both + _C2) / (var_a + var_b + _C2)
    return float((brightness * structure).mean())


@lru_cache
def _windows(side: int) -> np.ndarray:
    """[side - 10, side]: the weights of every window along one side."""
    line = np.exp(-((np.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    windows = np.zeros((side - _WINDOW + 1, side))
    for start, row in enumerate(windows):
        row[start : start + _WINDOW] = line / line.sum()
    return windows


def _pair(one: PIL.Image.Image, other: PIL.Image.Image, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 in 0..1 of one size."""
    if one.size != other.size:
        one = one.resize(other.size, PIL.Image.Resampling.LANCZOS)
    a, b = (np.asarray(image.convert(mode), np.float64) / 255 for image in (one, other))
    return a, b
