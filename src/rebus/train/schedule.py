"""Learning-rate schedules and the average of the weights: functions of the step, so that there is no state to resume."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rebus.train.stage import Optim


def rate(optim: Optim, step: int) -> float:
    """The share of the peak rate at `step` (from 0). The warm-up reaches the peak at its last step; the first step of a
    warm-up already moves (the official schedules start it at the start rate itself)."""
    warmup = optim.warmup_steps
    if optim.schedule == "per_batch_cosine":  # SEED-X: nothing ends the fall, which turns at the end of its half wave
        step *= optim.accumulate
    if step < warmup:
        return optim.warmup_start + (1 - optim.warmup_start) * (step + 1) / warmup
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "per_epoch_cosine":  # SEED: the cosine is over epochs of the whole run, warm-up included
        progress = (step // optim.epoch_steps) * optim.epoch_steps / optim.steps
    else:
        progress = (step - warmup) / max(1, optim.steps - warmup)
    if optim.schedule != "per_batch_cosine":
        progress = min(1.0, progress)
    fall = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * fall


@torch.no_grad()
def average(mean: Mapping[str, Tensor], weights: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move `mean` towards `weights` in place, by 1 - min(decay, (1 + step) / (10 + step)), so that a short run's average
    does not remember its random start."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, value in weights.items():
        mean[name].lerp_(value.detach(), share)
