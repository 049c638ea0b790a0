"""Two processes that share their features learn as one that has them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from rebus.papers.seed.losses import contrastive_loss
from rebus.train import parallel

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
found = {}
for gradient in (True, False):
    image_IC, text_IC = torch.load(f"{folder}/features.pt")
    image_IC, text_IC = (x[3 * rank : 3 * rank + 3].clone().requires_grad_() for x in (image_IC, text_IC))
    everywhere = [parallel.all_gather_features(x, gradient=gradient) for x in (image_IC, text_IC)]
    loss = contrastive_loss(
        image_IC, text_IC, torch.tensor(0.5), all_image_JC=everywhere[0], all_text_JC=everywhere[1], first=3 * parallel.rank()
    )
    loss.backward()
    found[gradient] = (loss.detach(), image_IC.grad, text_IC.grad)
torch.save(found, f"{folder}/{rank}.pt")
"""


def test_two_processes_are_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    image_IC, text_IC = (torch.randn(6, 4, generator=generator) for _ in range(2))
    torch.save((image_IC, text_IC), tmp_path / "features.pt")
    (tmp_path / "run.py").write_text(SCRIPT)
    both = [subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    from rebus.papers.seed.losses import contrastive_loss

    def whole(everywhere: list[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
        own = [image_IC.clone().requires_grad_(), text_IC.clone().requires_grad_()]
        others = everywhere or own
        loss = contrastive_loss(*own, torch.tensor(0.5), all_image_JC=others[0], all_text_JC=others[1])
        loss.backward()
        return loss.detach(), *(x.grad for x in own)

    # the mean over processes is the loss of the whole batch; each sums its own half's gradient over two processes
    for gradient, (loss, *grads) in ((True, whole(None)), (False, whole([image_IC, text_IC]))):
        torch.testing.assert_close(sum(half[gradient][0] for half in halves) / 2, loss)
        for number, grad in enumerate(grads, 1):
            torch.testing.assert_close(torch.cat([half[gradient][number] for half in halves]) / 2, grad)
