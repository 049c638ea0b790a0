"""What is measured of an arm of the study of LaVIT's tokens.

Dimension key: I images · N patches · C width
"""

from __future__ import annotations

import re

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from rebus.evals.complexity import correlation, gradient_energy, png_bytes
from rebus.mini.frozen import Frozen
from rebus.papers.lavit.selector import KEEP, keep_best
from rebus.studies.arms import Measure
from rebus.studies.lavit_arms import LEARNED, TokensArm

MEASURES = (
    Measure("cosine", "patch features rebuilt, cosine"),
    Measure("at_budget", "the same with exactly the budget"),
    Measure("named", "nearest picture has the same name, by tokens"),
    Measure("named_code", "the same, by what is left at a code's width"),
    Measure("tokens", "tokens of a picture", ""),
    Measure("deviation", "their deviation between pictures", ""),
    Measure("complexity", "correlation of tokens with PNG bytes", ""),
    Measure("energy", "correlation of tokens with gradient energy", ""),
    Measure("decided", "share of the length's variance that is the picture's, not the draw's", ""),
)


def name_of(caption: str) -> str:
    """What a picture of the bank shows, without the words for its style and backdrop."""
    return re.sub(r"(,? (drawn )?in [^,]* style\b.*|, [^,]* style\b.*|, on an? .*)$", "", caption)


def named_alike(x_IC: Tensor, names: list[str]) -> float:
    """Share of the pictures whose name another picture has too, of which the nearest other picture has it."""
    x_IC = F.normalize(x_IC - x_IC.mean(0), dim=-1)
    likeness_II = (x_IC @ x_IC.T).fill_diagonal_(-torch.inf)
    nearest = likeness_II.argmax(1).tolist()
    asked = [i for i, name in enumerate(names) if names.count(name) > 1]
    return sum(names[nearest[i]] == names[i] for i in asked) / max(1, len(asked))


@torch.no_grad()
def measured(arm: TokensArm, data: Frozen, n: int) -> dict[str, float]:
    """The figures of a trained arm on single pictures of split `val`."""
    arm.eval()
    singles = data.singles("val", n)
    generator = torch.Generator().manual_seed(0)
    cosines: list[Tensor] = []
    budgets: list[Tensor] = []
    tokens, codes, counts, likely = [], [], [], []
    for part in np.array_split(singles, max(1, len(singles) // 100)):
        x_INC = data.rows("val", part, "tokens")[0][:, 1:]
        keep_IN = arm.choice(x_INC, generator, 0.0)
        logp_IN2 = arm.tokenizer.selector(x_INC)
        best_IN = keep_best(logp_IN2, arm.own.budget) if arm.kind in LEARNED else keep_IN
        for held, mask_IN in ((cosines, keep_IN), (budgets, best_IN.to(x_INC))):
            held.append(F.cosine_similarity(x_INC, arm.rebuild(x_INC, mask_IN)[0], dim=-1).mean(1))
        made = arm.tokens(x_INC, keep_IN > 0)
        tokens.append(made[0])
        codes.append(made[1])
        whole = torch.full((len(x_INC),), float(arm.own.budget))
        counts.append(whole if arm.encoder is not None else keep_IN.sum(1))
        likely.append(logp_IN2[..., KEEP].exp())
    names = [name_of(data.bank("val").captions[i]) for i in singles]
    pictures = [PIL.Image.fromarray(data.bank("val").images_NHW3[i]) for i in singles]
    count_I, p_IN = torch.cat(counts), torch.cat(likely)
    # of lengths that are drawn: how the mean differs between pictures, and how draws differ around it
    between, within = p_IN.sum(1).var(correction=0), (p_IN * (1 - p_IN)).sum(1).mean()
    return {
        "cosine": torch.cat(cosines).mean().item(),
        "at_budget": torch.cat(budgets).mean().item(),
        "named": named_alike(torch.cat(tokens), names),
        "named_code": named_alike(torch.cat(codes), names),
        "tokens": count_I.mean().item(),
        "deviation": count_I.std(correction=0).item(),
        "complexity": correlation(count_I, png_bytes(pictures)),
        "energy": correlation(count_I, gradient_energy(pictures)),
        "decided": (between / (between + within)).item() if arm.kind in LEARNED else 0.0,
    }
