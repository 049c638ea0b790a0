"""LaVIT's token selector: which patches of an image are kept (section 3.1, "token selector").

A small network gives each patch the log-probabilities of being kept and of being dropped. At temperature 1 the paper's
Gumbel draw keeps a patch with exactly that probability, in use as in training; `threshold`, `expected` and `topk` leave out the dice.

Dimension key: I images · N patches · C width
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.nn.attention import init_linears

Selection = Literal["sample", "threshold", "expected", "topk"]
"""`sample`: a Gumbel draw for each patch (the published code). `threshold`: patches that are rather kept than dropped.
`expected`: the likeliest, as many as a draw would keep on average. `topk`: the likeliest, of a given number.

Both of the two in the middle give an image a length of its own without dice. They are the same where every patch is decided.
Where the selector gives all patches about one third, as a short training leaves it, nothing passes the threshold, while the
expected number and the order are as good as they ever were."""

KEEP, DROP = 0, 1
"""Which of the two log-probabilities is which."""


class Selector(nn.Module):
    """Patch features → log-probabilities [I, N, 2] of being kept and of being dropped, in float32."""

    def __init__(self, width: int, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.LayerNorm(width, eps=1e-5), nn.Linear(width, width), nn.GELU())
        self.score = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
        )
        init_linears(self, generator, std)

    def local_and_global(self, x_INC: Tensor, among_IN: Tensor | None = None) -> Tensor:
        """Each patch's own half of the mixed features, and beside it the mean of the other half over the patches that
        `among_IN` (0 or 1) counts; none: all."""
        local_INC, global_INC = self.mix(x_INC).chunk(2, dim=-1)
        among_IN1 = torch.ones_like(global_INC[..., :1]) if among_IN is None else among_IN[..., None].to(global_INC)
        mean_I1C = (global_INC * among_IN1).sum(1, keepdim=True) / among_IN1.sum(1, keepdim=True)
        return torch.cat([local_INC, mean_I1C.expand_as(global_INC)], dim=-1)

    def forward(self, x_INC: Tensor, among_IN: Tensor | None = None) -> Tensor:
        """x_INC → logp_IN2; `among_IN` as in `local_and_global`."""
        x_INC = x_INC.to(next(self.parameters()).dtype)
        return self.score(self.local_and_global(x_INC, among_IN)).float().log_softmax(-1)


def gumbel_noise(patches: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard Gumbel noise_IN2, each image's from its own generator."""
    draws = [torch.empty(patches, 2, device=g.device).exponential_(generator=g) for g in generators]
    return -torch.stack([draw.cpu() for draw in draws]).clamp(min=1e-20).log()


def keep_sampled(logp_IN2: Tensor, noise_IN2: Tensor) -> Tensor:
    """bool keep_IN: the side that wins with the noise added."""
    noisy_IN2 = logp_IN2 + noise_IN2.to(logp_IN2)
    return noisy_IN2[..., KEEP] >= noisy_IN2[..., DROP]


def keep_straight_through(logp_IN2: Tensor, noise_IN2: Tensor, temperature: float = 1.0) -> Tensor:
    """keep_IN as numbers, exactly 0 or 1 with at least one patch kept, through which the gradient of the soft choice
    flows (Gumbel softmax, section 3.1). Noise of zero makes the choice that `keep_likely` makes."""
    noisy_IN2 = logp_IN2 + noise_IN2.to(logp_IN2)
    return straight_through(at_least_one(keep_sampled(logp_IN2, noise_IN2), logp_IN2), noisy_IN2, temperature)


def straight_through(keep_IN: Tensor, logp_IN2: Tensor, temperature: float = 1.0) -> Tensor:
    """A choice as numbers, exactly 0 or 1, through which the gradient of the probabilities flows."""
    soft_IN = (logp_IN2 / temperature).softmax(-1)[..., KEEP]
    return keep_IN.to(soft_IN) + (soft_IN - soft_IN.detach())


def keep_likely(logp_IN2: Tensor) -> Tensor:
    """bool keep_IN: patches that are at least as likely to be kept as to be dropped."""
    return logp_IN2[..., KEEP] >= logp_IN2[..., DROP]


def keep_expected(logp_IN2: Tensor) -> Tensor:
    """bool keep_IN: in each image the likeliest patches, as many as a draw would keep on average, at least one; the first
    among equals."""
    p_IN = logp_IN2[..., KEEP].exp()
    count_I1 = p_IN.sum(1, keepdim=True).round().clamp(1, p_IN.shape[1])
    order_IN = logp_IN2[..., KEEP].argsort(dim=-1, descending=True, stable=True)
    places_N = torch.arange(p_IN.shape[1], device=p_IN.device)
    return torch.zeros_like(p_IN, dtype=torch.bool).scatter(1, order_IN, places_N < count_I1)


def keep_best(logp_IN2: Tensor, budget: int) -> Tensor:
    """bool keep_IN: in each image the `budget` likeliest patches, the first among equals.

    Raises RebusError for a budget that is not 1 to the number of patches.
    """
    check_budget(budget, logp_IN2.shape[1])
    order_IN = logp_IN2[..., KEEP].argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(logp_IN2[..., KEEP], dtype=torch.bool).scatter(1, order_IN[:, :budget], True)


def at_least_one(keep_IN: Tensor, logp_IN2: Tensor) -> Tensor:
    """The same, but an image that would lose every patch keeps its likeliest: an image of no tokens is no image. (Nothing
    in the published code prevents it.)"""
    return torch.where(keep_IN.any(dim=1, keepdim=True), keep_IN, keep_best(logp_IN2, 1))


def check_budget(budget: int | None, patches: int) -> None:
    """Raises RebusError for a budget that is not 1 to `patches`."""
    if budget is None or not 1 <= budget <= patches:
        raise RebusError(
            f"An image has {patches} patches, of which 1 to {patches} can be kept, but the budget is {budget}. "
            "Choose a number in that range."
        )
