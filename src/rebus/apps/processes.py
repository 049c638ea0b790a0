"""Joining the processes that `torchrun` started: who one is, which device one has, and how one leaves.

torchrun --nproc-per-node 8 -m rebus.apps.cli train seed.stage3_pretrain --config paper …
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from rebus.apps.device import choose_device
from rebus.errors import RebusError
from rebus.train import parallel

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: as long as building what is computed once may take."""


@contextlib.contextmanager
def joined(device: str) -> Iterator[torch.device]:
    """The device of this process, as one of those that torchrun started, or alone where it started none.

    Raises RebusError when another process ended while this one waited for it.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        yield choose_device(device)
        return
    own = choose_device(device)
    if own.type == "cuda":
        own = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(own)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield own
        dist.barrier()
    except RuntimeError as error:
        if not parallel.lost(error):
            raise
        raise RebusError(
            f"Another process of this run ended, or cannot be reached ({str(error).splitlines()[0][:150]}). "
            "The same command goes on from the last checkpoint."
        ) from error
    finally:
        dist.destroy_process_group()
