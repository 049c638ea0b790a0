"""Initialisation of a language model's image inputs from the names of what images show: embedding rows of image codes, and
the linear projector of image features.

Both are learned by contrast (cross-entropy over the cosine with all names, as in CLIP): what an image is read as, summed or averaged, points to its own name rather than to any
other. (What is found for each code by itself, or by regression on captions, remembers which images it was in; contrast
with all names says something of images that were never seen.)

Dimension key: I images · N codes of an image · K codes of the codebook · T tokens of an image · C width of a code or
token · Q names · V words · D language-model width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.nn.caption_rows import caption_vectors, words_at
from rebus.nn.text_tokenizer import TextTokenizer


@dataclass(frozen=True)
class NameFit:
    """How a way in is fitted to names."""

    steps: int = 1500
    """Steps of the optimiser."""
    batch: int = 512
    """Images of one step."""
    lr: float = 9e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Of the linear layer."""
    dropped: float = 0.3
    """Share of an image's codes or tokens that are left out, anew each time: a name must not hang on one alone."""
    smoothing: float = 0.1
    """Share of the aim that goes to all names alike."""
    place: float = 0.5
    """Codes that are summed: size of the vector that tells each place of an image from the others, in that of a word. (Sums differ
    little from place to place; with it the lower layers of a language model learned names faster.)"""


def rows_from_names(
    table_VD: Tensor,
    text: TextTokenizer,
    codebook_KC: Tensor,
    ids_IN: Tensor,
    name_I: Tensor,
    names: Sequence[str],
    *,
    fit: NameFit | None = None,
    summed: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """First input rows for the codes, [K, D], from images of which each has one of the `names`.

    A name is the mean of its words' rows. A code's row is one linear layer of its entry in the codebook; all rows of an
    image, summed, point to its name. Rows have the mean and the root-mean-square distance from it that ordinary words have;
    where they are read as running sums (`summed`; the codes of the first place are the first of the codebook), it is the
    sums that have them.
    """
    fit = fit or NameFit()
    book_KC, places = codebook_KC.detach().float(), ids_IN.shape[1]

    def read(i: Tensor) -> Tensor:
        kept_IN = torch.rand(len(i), places, generator=generator) >= fit.dropped
        weights_IN = kept_IN.float() / (1 - fit.dropped)
        return F.embedding_bag(ids_IN[i], book_KC, per_sample_weights=weights_IN, mode="sum")

    weight_CD, bias_D = _learned(names_at(table_VD, text, names), read, name_I, fit, generator)
    made_KD = book_KC @ weight_CD
    centre_D, spread = words_at(table_VD)
    if summed:
        first = len(book_KC) // places
        made_KD[:first] += bias_D
        made_KD *= spread / made_KD[ids_IN].sum(1).square().sum(1).mean().sqrt()
        made_KD[:first] += centre_D
        mark_PD = F.normalize(torch.randn(places, made_KD.shape[1], generator=generator), dim=-1) * spread * fit.place
        # what a code adds to the sum before it: its own place's mark instead of the last one's
        made_KD.view(places, first, -1).add_(torch.diff(mark_PD, dim=0, prepend=torch.zeros_like(mark_PD[:1]))[:, None])
        return made_KD
    made_KD += bias_D / places
    return centre_D + made_KD * (spread / made_KD.square().sum(1).mean().sqrt())


def linear_from_names(
    table_VD: Tensor,
    text: TextTokenizer,
    x_ITC: Tensor,
    real_IT: Tensor,
    name_I: Tensor,
    names: Sequence[str],
    *,
    fit: NameFit | None = None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """First weight [D, C] and bias [D] of a linear layer from tokens of images to the language model, from images of which
    each has one of the `names`; `real_IT` says which tokens there are.

    The mean of an image's vectors points to its name. All vectors have the mean and the root-mean-square distance from
    it that ordinary words have.
    """
    fit = fit or NameFit()
    tokens_TC = x_ITC[real_IT].float()
    # in units of their own, so that one rate suits every one of the C numbers
    middle_C, scale_C = tokens_TC.mean(0), tokens_TC.std(0).clamp(min=1e-6)

    def read(i: Tensor) -> Tensor:
        kept_IT = real_IT[i] & (torch.rand(real_IT[i].shape, generator=generator) >= fit.dropped)
        x_IC = torch.einsum("itc,it->ic", x_ITC[i].float(), kept_IT.float()) / kept_IT.sum(1).clamp(min=1)[:, None]
        return (x_IC - middle_C) / scale_C

    weight_CD, bias_D = _learned(names_at(table_VD, text, names), read, name_I, fit, generator)
    weight_CD = weight_CD / scale_C[:, None]
    bias_D = bias_D - middle_C @ weight_CD
    made_TD = tokens_TC @ weight_CD + bias_D
    centre_D, spread = words_at(table_VD)
    made_D = made_TD.mean(0)
    factor = spread / (made_TD - made_D).square().sum(1).mean().sqrt()
    return (weight_CD * factor).T, centre_D + (bias_D - made_D) * factor


def names_at(table_VD: Tensor, text: TextTokenizer, names: Sequence[str]) -> Tensor:
    """Where each name lies from the middle of all, a unit vector: [Q, D]."""
    return F.normalize(caption_vectors(table_VD, text, names), dim=-1)


def _learned(
    names_QD: Tensor, read: Callable[[Tensor], Tensor], name_I: Tensor, fit: NameFit, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [D] of a linear layer of what `read` says of images; their likeness to the names is a cosine."""
    wide, images = names_QD.shape[1], len(name_I)
    width = read(torch.zeros(1, dtype=torch.int64)).shape[1]
    weight_CD = (torch.randn(width, wide, generator=generator) * 0.02).requires_grad_()
    bias_D = torch.zeros(wide, requires_grad=True)
    sharpness = torch.tensor(2.5, requires_grad=True)
    optimizer = torch.optim.AdamW([weight_CD, bias_D, sharpness], weight_decay=fit.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.lr, fit.steps)
    with torch.enable_grad():
        for _ in range(fit.steps):
            i = torch.randint(images, (min(fit.batch, images),), generator=generator)
            likeness_IQ = F.normalize(read(i) @ weight_CD + bias_D, dim=-1) @ names_QD.T * sharpness.exp()
            loss = F.cross_entropy(likeness_IQ, name_I[i], label_smoothing=fit.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weight_CD.detach(), bias_D.detach()
