"""SEED-X's ways into and out of the language model: a resampler each (sections 3.1 and 3.2).

Dimension key: I images · W views of one image · V views of all images · N vectors of a view · S slots · C visual width ·
D language-model width · T slots of all views or images
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.resampler import Resampler, ResamplerConfig
from rebus.nn.running_sums import running_means
from rebus.nn.word_drawings import WordDrawings, WordDrawingsConfig
from rebus.nn.word_readings import WordReadings, WordReadingsConfig
from rebus.papers.seed_x.vision import pool_rows
from rebus.visual import Features, Patches

Regression = Literal["mse", "cosine"]


class SeedXInputProjector(nn.Module):
    """Views → vectors of the language model's width, one for each slot; where a view lies in its image is added to all of
    its slots.

    With `running_mean` a slot is the mean of its view's up to it, so that the last says what all of them do; with `words`, a view's last
    slots are words of the language model that say what it shows. (The paper: neither.)
    """

    def __init__(
        self,
        config: ResamplerConfig,
        generator: torch.Generator | None = None,
        *,
        running_mean: bool = False,
        words: WordReadingsConfig | None = None,
    ) -> None:
        super().__init__()
        self.running_mean = running_mean
        self.resampler = Resampler(config, generator)
        self.words = None if words is None else WordReadings(words, config.source_width)
        begin_4D = torch.randn(4, config.width, generator=generator) * config.width**-0.5
        self.position_4D = nn.Parameter(begin_4D)

    def forward(self, inputs: list[Features | Patches]) -> Tensor:
        """T x D, the slots of all views in order. Raises RebusError for anything but features of this width."""
        config, weight = self.resampler.config, self.resampler.proj.weight
        views = [image for image in inputs if isinstance(image, Features)]
        for number, image in enumerate(inputs, 1):
            if not isinstance(image, Features) or image.x_WNC.shape[-1] != config.source_width:
                what = list(image.x_WNC.shape) if isinstance(image, Features) else type(image).__name__
                raise RebusError(
                    f"SEED-X reads images as features of width {config.source_width}, but image {number} of {len(inputs)} "
                    f"is {what}. Encode it with this model's tokenizer."
                )
        x_VNC = torch.cat([image.x_WNC for image in views]).to(weight)
        x_VSD = self.resampler(x_VNC)
        if self.running_mean:
            lengths_V = torch.full((len(x_VSD),), x_VSD.shape[1], device=x_VSD.device)
            x_VSD = running_means(x_VSD.flatten(0, 1), lengths_V).unflatten(0, x_VSD.shape[:2])
        x_VSD = x_VSD + torch.cat([self._positions(image) for image in views])[:, None]
        if self.words is not None:
            x_VSD = self.words(x_VSD, x_VNC)
        return rearrange(x_VSD, "v s d -> (v s) d")

    def dummy(self) -> list[Features | Patches]:
        """One view of one vector, of nothing."""
        weight = self.resampler.proj.weight
        return [Features(weight.new_zeros(1, 1, self.resampler.config.source_width), "", weight.new_zeros(1, 2))]

    def _positions(self, image: Features) -> Tensor:
        """W x D; nothing is added to views of which nobody says where they lie."""
        weight_4D = self.position_4D
        if image.position_W2 is None:
            return weight_4D.new_zeros(len(image.x_WNC), weight_4D.shape[1])
        x_W, y_W = image.position_W2.to(weight_4D).unbind(-1)
        # the four are the paper's l, t, r, b; the half is the published code's and not in the paper
        return 0.5 * torch.stack([x_W, y_W, 1 - x_W, 1 - y_W], dim=-1) @ weight_4D


class SeedXOutputProjector(nn.Module):
    """Hidden states at an image's slots → the features that an image decoder takes. `regression` says how far off they
    are while training: mean squared error as released, or one minus the cosine. `source` is the tokenizer's, whose
    features they stand for.

    With `keeps`, each slot says how much of its features is as in the last view that was read (`seen`), and the rest is regressed: an edit
    need not be taught to copy. With `words`, the first slots say words of the language model, and to what these look like is added what is
    regressed; where data says what an image shows, they are learned beside, with `saying_weight`. (The paper: neither.)
    """

    def __init__(
        self,
        config: ResamplerConfig,
        regression: Regression = "mse",
        *,
        source: str = "seed_x",
        keeps: bool = False,
        words: WordDrawingsConfig | None = None,
        saying_weight: float = 0.15,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.saying_weight = saying_weight
        self.resampler = Resampler(config, generator)
        if words is not None and (words.apart or words.words > config.queries):
            raise RebusError(
                f"An image's {config.queries} slots say a word each, but {words.words} words are to be said with maps of rank "
                f"{words.apart}. Give at most {config.queries} words and leave `apart` at 0."
            )
        size = (config.source_width, config.queries, config.width)
        self.words = None if words is None else WordDrawings(words, *size)
        self.keep = nn.Linear(config.source_width, 1) if keeps else None
        if self.keep is not None:
            nn.init.zeros_(self.keep.weight)
            nn.init.constant_(self.keep.bias, -3.0)  # what is drawn is seldom what was seen
        self.regression = regression
        self.source = source

    @torch.no_grad()
    def forward(self, hidden_SD: Tensor, seen: Features | Patches | None = None) -> Features:
        """The image that the hidden states of its slots say: x_1SC, in float32. Nothing is learned through it."""
        sharper = 1.0 if self.words is None else self.words.config.sharper
        return Features(self._drawn(hidden_SD[None], [seen], sharper), self.source)

    def _drawn(self, hidden_ISD: Tensor, seen: Sequence[Features | Patches | None], sharper: float = 1.0) -> Tensor:
        """x_ISC in float32; `sharper` as `WordDrawings` takes it."""
        hidden_ISD = hidden_ISD.to(self.resampler.proj.weight)
        x_ISC = self.resampler(hidden_ISD).float()
        if self.words is not None:
            x_ISC = x_ISC + self.words(hidden_ISD[:, : self.words.config.words], sharper=sharper)
        if self.keep is None:
            return x_ISC
        slots = self.resampler.config.queries
        views = [view.x_WNC[-1:] if isinstance(view, Features) else None for view in seen]
        before_ISC = torch.cat(
            [
                x_SC[None].detach() if view is None else pool_rows(view.to(x_ISC), view.shape[1] // slots)
                for x_SC, view in zip(x_ISC, views, strict=True)
            ]
        )
        return torch.lerp(x_ISC, before_ISC, self.keep(hidden_ISD).sigmoid().float())

    def loss(
        self,
        hidden_TD: Tensor,
        outputs: list[Features],
        seen: Sequence[Features | Patches | None] | None = None,
    ) -> Tensor:
        """Mean over all vectors of all images, in float32. Raises RebusError when images and slots do not agree."""
        target_ISC = torch.cat([image.x_WNC for image in outputs]).to(hidden_TD.device)
        config = self.resampler.config
        if len(target_ISC) * config.queries != len(hidden_TD) or target_ISC.shape[1:] != (config.queries, config.width):
            raise RebusError(
                f"An image is regressed from {config.queries} hidden states to as many vectors of width {config.width}, "
                f"but there are {len(hidden_TD)} states for targets of {list(target_ISC.shape)}. "
                "Encode the images with the tokenizer that belongs to this model."
            )
        hidden_ISD = rearrange(hidden_TD, "(i s) d -> i s d", s=config.queries)
        x_ISC = self._drawn(hidden_ISD, [None] * len(hidden_ISD) if seen is None else seen)
        target_ISC = target_ISC.detach().float()
        if self.regression == "mse":
            away = F.mse_loss(x_ISC, target_ISC)
        else:
            away = (1 - F.cosine_similarity(x_ISC, target_ISC, dim=-1)).mean()
        return away + self.saying_weight * self._saying(hidden_ISD, outputs) if self.training else away

    def _saying(self, hidden_ISD: Tensor, outputs: list[Features]) -> Tensor:
        """What the words cost that images are drawn from, of those of which they are known, times their share; while training alone."""
        told = [number for number, image in enumerate(outputs) if image.says_K is not None]
        if self.words is None or not told:
            return hidden_ISD.new_zeros(())
        says_IK = torch.stack([image.says_K for image in outputs if image.says_K is not None]).to(hidden_ISD.device)
        known_I = self.words.known(says_IK)
        if not known_I.any():
            return hidden_ISD.new_zeros(())
        own_IKD = hidden_ISD[told][known_I, : self.words.config.words]
        nats, _ = self.words.saying(own_IKD, self.words.places(says_IK[known_I]))
        return nats * (int(known_I.sum()) / len(outputs))

    def dummy(self) -> tuple[Tensor, list[Features]]:
        """The slots of one image, and its features: zeros."""
        config, weight = self.resampler.config, self.resampler.proj.weight
        target_1SC = weight.new_zeros(1, config.queries, config.width)
        return weight.new_zeros(config.queries, config.source_width), [Features(target_1SC, self.source)]
