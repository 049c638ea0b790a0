"""The losses that train SEED's tokenizer: image against text in stage 1, codes against embeddings in stage 2.

Dimension key: I images (as many texts) · J images of all processes · N codes of an image · L words · C width · V words
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebus.nn.attention import init_linears_by_width


class ContrastiveHeads(nn.Module):
    """Projections of image and text to a common space, and the temperature of their similarities (stage 1)."""

    def __init__(
        self, width: int = 768, out: int = 256, *, temperature: float = 0.07, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.vision_proj = nn.Linear(width, out)
        self.text_proj = nn.Linear(width, out)
        self.temperature = nn.Parameter(torch.tensor(temperature))
        init_linears_by_width(self, generator)

    def image(self, x_INC: Tensor) -> Tensor:
        """Causal embeddings → unit vectors_IC from the last query, the only one that has seen all others."""
        return F.normalize(self.vision_proj(x_INC[:, -1]), dim=-1)

    def text(self, x_ILC: Tensor) -> Tensor:
        """Text states → unit vectors_IC from the first position."""
        return F.normalize(self.text_proj(x_ILC[:, 0]), dim=-1)


def contrastive_loss(
    image_IC: Tensor,
    text_IC: Tensor,
    temperature: Tensor,
    *,
    all_image_JC: Tensor | None = None,
    all_text_JC: Tensor | None = None,
    first: int = 0,
    smoothing: float = 0.1,
) -> Tensor:
    """Mean of image→text and text→image cross-entropy of unit vectors, labels smoothed (SEED section 3.1, stage 1).

    With several processes, `all_*` are the vectors gathered from all of them (without gradient, as published) and
    `first` is where this process's own begin among them. The temperature divides and is not clamped.
    """
    all_image_JC = image_IC if all_image_JC is None else all_image_JC
    all_text_JC = text_IC if all_text_JC is None else all_text_JC
    target_I = first + torch.arange(len(image_IC), device=image_IC.device)
    to_text = F.cross_entropy(image_IC @ all_text_JC.T / temperature, target_I, label_smoothing=smoothing)
    to_image = F.cross_entropy(text_IC @ all_image_JC.T / temperature, target_I, label_smoothing=smoothing)
    return (to_text + to_image) / 2


@torch.no_grad()
def hard_negatives(similarity_II: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each text a wrong image, for each image a wrong text (ids_I each, on the CPU), drawn by the softmax of their
    similarity; the right one never. Needs two pairs or more."""
    own_II = torch.eye(len(similarity_II), dtype=torch.bool, device=similarity_II.device)
    weight_II = similarity_II.float().masked_fill(own_II, float("-inf"))
    texts_II, images_II = (
        x.softmax(1).masked_fill(own_II, 0).add(1e-6 * ~own_II).cpu() for x in (weight_II, weight_II.T)
    )
    chosen = [torch.multinomial(x_II, 1, generator=generator).flatten() for x_II in (images_II, texts_II)]
    return chosen[0], chosen[1]


def caption_loss(logits_ILV: Tensor, ids_IL: Tensor, mask_IL: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of each word given those before it; padding has no loss. (Off in SEED's release.)"""
    target_IL = ids_IL.masked_fill(mask_IL == 0, -100)[:, 1:]
    return F.cross_entropy(logits_ILV[:, :-1].flatten(0, 1), target_IL.flatten(), label_smoothing=smoothing)


@dataclass(frozen=True, eq=False)
class Stage2Losses:
    """The weighted terms of stage 2."""

    quantiser: Tensor
    """5 x the quantiser's loss."""
    image: Tensor
    """0.5 x mean squared error of the image embedding."""
    embedding: Tensor
    """2 x (1 - cosine) of the rebuilt causal embeddings."""

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.quantiser + self.image + self.embedding


def stage2_losses(
    quantiser_loss: Tensor,
    image_IC: Tensor,
    target_IC: Tensor,
    rebuilt_INC: Tensor,
    causal_INC: Tensor,
    *,
    weights: tuple[float, float, float] = (5.0, 0.5, 2.0),
) -> Stage2Losses:
    """Losses of stage 2 (SEED section 3.1; the weights are the published script's).

    `target_IC` is what a CLIP image encoder says of the same image, not normalised. The causal embeddings are a target
    only: no gradient reaches them.
    """
    distance_IN = 1 - F.cosine_similarity(rebuilt_INC, causal_INC.detach(), dim=-1)
    return Stage2Losses(
        quantiser=weights[0] * quantiser_loss,
        image=weights[1] * F.mse_loss(image_IC, target_IC),
        embedding=weights[2] * distance_IN.mean(),
    )
