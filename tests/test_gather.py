"""Two processes that share their features learn as one that has them all."""

from __future__ import annotations

import torch
from tests import parallel_runs as runs

from rebus.papers.seed.losses import contrastive_loss
from rebus.train import parallel


def features() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 4, generator=generator) for _ in range(2)]


def half() -> dict[bool, tuple[torch.Tensor, ...]]:
    """What one of two processes makes of its half, with and without gradient to the other's."""
    found = {}
    for gradient in (True, False):
        own = [x.chunk(2)[parallel.rank()].clone().requires_grad_() for x in features()]
        everywhere = [parallel.all_gather_features(x, gradient=gradient) for x in own]
        first = 3 * parallel.rank()
        loss = contrastive_loss(
            *own, torch.tensor(0.5), all_image_JC=everywhere[0], all_text_JC=everywhere[1], first=first
        )
        loss.backward()
        found[gradient] = (loss.detach(), *(x.grad for x in own))
    return found


def test_two_processes_are_one() -> None:
    halves = runs.run(2, half)

    def whole(everywhere: list[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
        own = [x.clone().requires_grad_() for x in features()]
        others = everywhere or own
        loss = contrastive_loss(*own, torch.tensor(0.5), all_image_JC=others[0], all_text_JC=others[1])
        loss.backward()
        return loss.detach(), *(x.grad for x in own)

    # the mean over processes is the loss of the whole batch; each sums its own half's gradient over two processes
    for gradient, (loss, *grads) in ((True, whole(None)), (False, whole(features()))):
        torch.testing.assert_close(sum(half[gradient][0] for half in halves) / 2, loss)
        for number, grad in enumerate(grads, 1):
            torch.testing.assert_close(torch.cat([half[gradient][number] for half in halves]) / 2, grad)
