"""LaVIT's way into the language model: a merger of its own, trained with the language model, and one linear layer.

Dimension key: I images · N patches · T kept patches of all images · C width · D language-model width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.attention import init_linears
from rebus.nn.running_sums import running_means
from rebus.nn.word_readings import WordReadings, WordReadingsConfig
from rebus.papers.lavit.merger import Merger, MergerConfig
from rebus.visual import Features, Patches


class LavitInputProjector(nn.Module):
    """Patches → vectors of the language model's width, one for each kept patch. The merger is not the tokenizer's: that
    one serves the codes and never changes after stage 1 (section 3.2).

    With `running_mean` a vector is the mean of its image's up to it, so that the last says what all of them do; with `words`, an image's
    last vectors are words of the language model that say what it shows. (The paper: neither.)
    """

    def __init__(
        self,
        config: MergerConfig,
        llm_width: int,
        generator: torch.Generator | None = None,
        *,
        running_mean: bool = False,
        words: WordReadingsConfig | None = None,
    ) -> None:
        super().__init__()
        self.running_mean = running_mean
        self.merger = Merger(config, generator)
        self.proj = nn.Linear(config.width, llm_width)
        init_linears(self.proj, generator)
        self.words = None if words is None else WordReadings(words, config.width)

    def forward(self, inputs: list[Features | Patches]) -> Tensor:
        """T x D, the kept patches of all images in order. Raises RebusError for anything but patches of this width."""
        width = self.merger.config.width
        patches = [image for image in inputs if isinstance(image, Patches)]
        for number, image in enumerate(inputs, 1):
            if not isinstance(image, Patches) or image.x_NC.shape[-1] != width:
                what = list(image.x_NC.shape) if isinstance(image, Patches) else type(image).__name__
                raise RebusError(
                    f"LaVIT reads images as patches of width {width}, but image {number} of {len(inputs)} is {what}. "
                    "Encode it with this model's tokenizer."
                )
        weight = self.proj.weight
        x_INC = torch.stack([image.x_NC for image in patches]).to(weight)
        keep_IN = torch.stack([image.keep_N for image in patches]).to(weight.device)
        return self.read(x_INC, keep_IN)

    def read(self, x_INC: Tensor, keep_IN: Tensor) -> Tensor:
        """T x D of images of these patches, of which those are kept."""
        x_TC = self.merger.kept(x_INC, keep_IN)
        x_TD = self.proj(x_TC)
        if self.running_mean:
            x_TD = running_means(x_TD, keep_IN.sum(1))
        return x_TD if self.words is None else self.words.kept(x_TD, x_TC, keep_IN)

    def dummy(self) -> list[Features | Patches]:
        """Four patches of nothing, or as many as the merger has places for, of which one is kept."""
        x_NC = self.proj.weight.new_zeros(max(4, self.merger.config.grid**2), self.merger.config.width)
        return [Patches(x_NC, torch.arange(len(x_NC), device=x_NC.device) == 0, "")]
