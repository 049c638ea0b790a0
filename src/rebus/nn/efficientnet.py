"""EfficientNet-Lite (1905.11946, without squeeze-and-excite and with ReLU6): frozen ImageNet features of pictures.

Lite0 may serve losses and baselines; Lite2 is for scoring only (`evals/scorer.py`), so that no figure measures how well
a model pleases what it was trained against.

Dimension key: I images · C channels · h w height and width
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.errors import RebusError

MEAN = (0.485, 0.456, 0.406)
"""Channel means of the pixels (0..1) that the weights expect."""
STD = (0.229, 0.224, 0.225)
"""Channel deviations of the pixels."""

_STAGES = (  # kernel, stride, expansion, channels, repeats of the unscaled network
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class EfficientNetConfig:
    """How a Lite network is scaled from the base one."""

    width: float = 1.0
    """Factor of the channels, which are then rounded to eights; stem and head are not scaled."""
    depth: float = 1.0
    """Factor of the blocks of a stage, rounded up; first and last stage are not scaled."""
    image_size: int = 224
    """Side of the pictures it was trained with; any multiple of 32 works."""
    classes: int = 1000
    """Outputs of the classifier."""


LITE0 = EfficientNetConfig()
LITE2 = EfficientNetConfig(width=1.1, depth=1.2, image_size=260)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's `SAME` does: with stride 2 one more at the right and bottom."""

    def forward(self, x_ICHW: Tensor) -> Tensor:
        """[I, C, h, w] → [I, C', ⌈h / stride⌉, ⌈w / stride⌉]."""
        before_after: list[int] = []
        for side, kernel, stride in zip(reversed(x_ICHW.shape[2:]), self.kernel_size, self.stride, strict=True):
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            before_after += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x_ICHW, before_after))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Inverted(nn.Module):
    """An inverted residual block: widen, look around in each channel, narrow."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(before, inner, 1, bias=False), _norm(inner), nn.ReLU6()]
        layers += [SameConv(inner, inner, kernel, stride, groups=inner, bias=False), _norm(inner), nn.ReLU6()]
        layers += [nn.Conv2d(inner, after, 1, bias=False), _norm(after)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and before == after

    def forward(self, x_IChw: Tensor) -> Tensor:
        """[I, before, h, w] → [I, after, h / stride, w / stride]."""
        y_IChw = self.layers(x_IChw)
        return x_IChw + y_IChw if self.residual else y_IChw


class EfficientNet(nn.Module):
    """Pixels of mean MEAN and deviation STD → features, and the 1,000 ImageNet classes."""

    def __init__(self, config: EfficientNetConfig = LITE0) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(SameConv(3, 32, 3, 2, bias=False), _norm(32), nn.ReLU6())
        blocks, before = [], 32
        self.ends: list[int] = []
        """Number of the last block of each stage."""
        self.widths: list[int] = []
        """Channels of what each block gives."""
        for number, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES):
            after = _rounded(channels * config.width)
            if 0 < number < len(_STAGES) - 1:
                repeats = math.ceil(repeats * config.depth)
            for again in range(repeats):
                blocks.append(Inverted(before, after, kernel, 1 if again else stride, expansion))
                self.widths.append(after)
                before = after
            self.ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(nn.Conv2d(before, 1280, 1, bias=False), _norm(1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, config.classes)

    def maps(self, pixels_I3hw: Tensor) -> list[Tensor]:
        """What every block gives, shallow to deep, then the head's [I, 1280, h / 32, w / 32]."""
        x_IChw, found = self.stem(pixels_I3hw), []
        for block in self.blocks:
            x_IChw = block(x_IChw)
            found.append(x_IChw)
        return [*found, self.head(x_IChw)]

    def features(self, pixels_I3hw: Tensor) -> Tensor:
        """The head's output, averaged over the picture: [I, 1280]."""
        return self.maps(pixels_I3hw)[-1].mean((2, 3))

    def forward(self, pixels_I3hw: Tensor) -> Tensor:
        """Class scores [I, classes]."""
        return self.classifier(self.features(pixels_I3hw))


def _rounded(channels: float) -> int:
    """To the nearest eight, unless that loses more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


_THEIRS = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1", "_fc": "classifier"}
_IN_BLOCK = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")


def published_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the published names → under ours. Raises RebusError for a name that no rule knows."""
    expands = {name.split(".")[1] for name in tensors if "._expand_conv." in name}
    renamed = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block, part, leaf = found.groups()
            place = _IN_BLOCK.index(part) - (0 if block in expands else 2) if part in _IN_BLOCK else -1
            ours = f"blocks.{block}.layers.{place + place // 2}.{leaf}" if place >= 0 else ""  # ReLU6 after each pair
        else:
            part, _, leaf = name.partition(".")
            ours = f"{_THEIRS[part]}.{leaf}" if part in _THEIRS else ""
        if not ours:
            raise RebusError(f"{name} is no tensor of an EfficientNet-Lite. Give the weights of the published package.")
        renamed[ours] = tensor
    return renamed


def load_published(config: EfficientNetConfig, tensors: Mapping[str, Tensor]) -> EfficientNet:
    """The frozen network with published weights; every tensor is used and every parameter filled.

    Raises RebusError, naming both, for tensors that are missing, left over or of another shape.
    """
    with torch.device("meta"):
        network = EfficientNet(config)
    try:
        network.load_state_dict(published_weights(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise RebusError(
            f"These weights are not those of an EfficientNet-Lite of width {config.width} and depth {config.depth}: "
            f"{' '.join(str(error).split())}. Give the config that belongs to them."
        ) from error
    return network.eval().requires_grad_(False)
