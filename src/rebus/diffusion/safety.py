"""Stable Diffusion's safety checker behind a detokenizer: pictures that it flags are blacked out. Off unless it is asked for.

Dimension key: none; tensors are made by the checker
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn

from rebus.errors import RebusError
from rebus.images import CLIP_MEAN, CLIP_STD, prepare
from rebus.visual import Detokenizer, ImageSampling, Progress, VisualTokens


class SafetyChecker(nn.Module):
    """Whether pictures show what Stable Diffusion's filter was made for. `folder` is the `safety_checker` of a diffusers
    folder. Raises RebusError when it cannot be read."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        try:
            net = StableDiffusionSafetyChecker.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise RebusError(
                f"{folder} holds no safety checker that can be read ({str(error).splitlines()[0]}). Name the folder "
                "`safety_checker` of a Stable Diffusion, with config.json and its weights."
            ) from error
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def flagged(self, images: Sequence[PIL.Image.Image]) -> list[bool]:
        """Which of the pictures are flagged."""
        size = self.net.config.vision_config.image_size
        pixels = prepare(images, size, resize="bicubic", crop="centre", mean=CLIP_MEAN, std=CLIP_STD)
        # its own way of blacking out is for arrays; these stand in for the pictures
        _, found = self.net(pixels.to(self.net.visual_projection.weight), [np.zeros(1) for _ in images])
        return list(found)


class Checked:
    """A detokenizer whose pictures go through a checker; nothing is seen of them before. All else is the detokenizer's."""

    def __init__(self, detokenizer: Detokenizer, checker: SafetyChecker) -> None:
        self.detokenizer, self.checker = detokenizer, checker

    def decode(
        self,
        tokens: Sequence[VisualTokens],
        *,
        sources: Sequence[PIL.Image.Image | None],
        negatives: Sequence[VisualTokens | None],
        generators: Sequence[torch.Generator],
        sampling: ImageSampling,
    ) -> Iterator[Progress | PIL.Image.Image]:
        """As the detokenizer's, without previews, flagged pictures black."""
        drawing = self.detokenizer.decode(
            tokens, sources=sources, negatives=negatives, generators=generators, sampling=sampling
        )
        for piece in drawing:
            if isinstance(piece, Progress):
                yield Progress(piece.step, piece.of)
            else:
                (flagged,) = self.checker.flagged([piece])
                yield PIL.Image.new("RGB", piece.size) if flagged else piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detokenizer, name)
