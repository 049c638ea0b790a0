"""Does a training that is killed, again and again, end as one that was left alone?

    python benchmarks/kill_resume.py --moments 20 --layout fsdp

Two processes train a small model with noise, dropout and an average of its weights. They are killed with SIGKILL at
random moments, of three kinds: one process, both at once, and one of them in the middle of writing a checkpoint (before or
after a random one of the calls that create, sync, rename or delete). After each kill every checkpoint there is must be
whole; then the run is resumed. In the end its log and its weights must be those of the unbroken run, to the bit.

Processes are forked from one that has everything imported, so that a start takes no time worth mentioning.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import Layout, Losses, Optim, Stage, Trainable, dcp, fit, log, parallel

KINDS = ("one", "all", "write")
WORLD = 2
FORKS = multiprocessing.get_context("forkserver")


# ------------------------------------------------------------------------------------------------ the training


class Points:
    """Shuffled points of a line, a batch of 8 shared by the processes."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.at += 1
            x_B3 = torch.randn(8, 3, generator=torch.Generator().manual_seed(self.at))
            yield x_B3.chunk(parallel.world_size())[parallel.rank()]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def line(steps: int) -> Stage[Tensor]:
    """A stage whose every step depends on all that a checkpoint holds."""
    noise = torch.Generator().manual_seed(5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16, affine=False), nn.Dropout(0.1), nn.Linear(16, 1))

    def step(net: nn.Module, x_B3: Tensor) -> Losses:
        noisy_B3 = x_B3 + 0.1 * torch.randn(x_B3.shape, generator=noise)
        return Losses((net(noisy_B3)[:, 0] - x_B3.sum(1)).square().mean(), {"at": float(net[1].running_mean.norm())})

    optim = Optim(steps=steps, warmup=10, precision="fp32", ema=0.95, accumulate=2)
    return Stage("line", net, step, [Trainable("*", 1e-2)], Points(), optim, generators={"noise": noise})


def train(rank: int, meet: str, folder: Path, steps: int, shard: str, kill_at: int) -> None:
    """One process; with `kill_at` it ends at that many calls to the file system."""
    torch.set_num_threads(1)
    log.draw_curves = lambda folder: folder
    if kill_at:
        watch_calls(kill_at)
    try:
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORLD)
        fit(line(steps), folder, device="cpu", log_every=1, save_every=2, layout=Layout(shard))  # type: ignore[arg-type]
    except (RuntimeError, RebusError):  # the other one is gone
        os._exit(1)
    os._exit(0)


def watch_calls(kill_at: int) -> None:
    """Die before, or after, the given number of calls that change what is on the disk."""
    left = iter(range(kill_at, -1, -1))

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **named: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **named)
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted

    for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))


# ------------------------------------------------------------------------------------------------ killing it


def start(folder: Path, scratch: Path, steps: int, shard: str, kill_at: tuple[int, int] = (0, 0)) -> list[Any]:
    """The processes of one run."""
    meet = scratch / f"meet-{random.random()}"
    started = [
        FORKS.Process(target=train, args=(rank, str(meet), folder, steps, shard, kill_at[rank]))
        for rank in range(WORLD)
    ]
    for process in started:
        process.start()
    return started


def end(started: list[Any]) -> None:
    """Wait for all, as torchrun does: when one is gone the others are asked to stop, then made to."""
    while all(process.is_alive() for process in started):
        time.sleep(0.01)
    if any(process.exitcode != 0 for process in started if not process.is_alive()):
        for process in started:
            process.terminate()
    for process in started:
        process.join(30)
        process.kill()
        process.join()


def logged(folder: Path) -> list[dict[str, float]]:
    """The records of a run, without what depends on the clock."""
    return [
        {key: value for key, value in record.items() if key != "samples_per_second"}
        for record in log.read_journal(folder / "log.jsonl")
    ]


def check_whole(folder: Path) -> int:
    """Read every checkpoint there is; the step of the newest, 0 where there is none."""
    paths = dcp.checkpoints(folder)
    for path in paths:
        saved = dcp.Checkpoint(path)
        saved.load({name: torch.empty(shape) for name, shape in saved.shapes.items()})
        for rank in range(WORLD):
            saved.own(rank)
    return dcp.step_of(paths[-1]) if paths else 0


def killed_run(kind: str, moments: int, folder: Path, scratch: Path, steps: int, shard: str, rng: random.Random) -> int:
    """Train to the end, killed at `moments` moments; how many of these there were (fewer if the run was over before)."""
    done = 0
    while done < moments:
        before = check_whole(folder)
        if kind == "write":
            at = [0] * WORLD
            at[rng.randrange(WORLD)] = rng.randint(1, 80)
            started = start(folder, scratch, steps, shard, (at[0], at[1]))
        else:
            started = start(folder, scratch, steps, shard)
            wanted, wait = before + rng.randint(0, 4), rng.random() * 0.1
            while all(p.is_alive() for p in started) and (logged(folder) or [{"step": 0}])[-1]["step"] < wanted:
                time.sleep(0.005)
            time.sleep(wait)
            for process in started if kind == "all" else [rng.choice(started)]:
                process.kill()
        end(started)
        if all(process.exitcode == 0 for process in started):
            break
        done += 1
    after = check_whole(folder)
    end(start(folder, scratch, steps, shard))
    assert dcp.step_of(dcp.checkpoints(folder)[-1]) == steps, f"the run went on from {after}, but did not end"
    return done


def outcome(
    kinds: tuple[str, ...], moments: int, shard: str, seed: int, place: str | None = None
) -> Iterator[tuple[str, int, str]]:
    """For each kind: how often the run was killed, and in what it differs from the unbroken one (in nothing)."""
    FORKS.set_forkserver_preload(["rebus.train"])
    steps = 20 + 4 * moments
    with tempfile.TemporaryDirectory(dir=place) as held:
        scratch = Path(held)
        end(start(scratch / "whole", scratch, steps, shard))
        whole = logged(scratch / "whole"), load_file(scratch / "whole" / "weights.safetensors")
        assert [record["step"] for record in whole[0]] == list(range(1, steps + 1)), "the unbroken run did not end"
        for kind in kinds:
            folder = scratch / kind
            done = killed_run(kind, moments, folder, scratch, steps, shard, random.Random(f"{seed} {kind}"))
            records, weights = logged(folder), load_file(folder / "weights.safetensors")
            apart = [
                f"{ours} against {theirs}" for ours, theirs in zip(records, whole[0], strict=False) if ours != theirs
            ]
            apart += [name for name, x in whole[1].items() if not torch.equal(weights[name], x)]
            apart += [f"left over: {path.name}" for path in folder.glob(".checkpoint-*")]
            if len(records) != len(whole[0]):
                apart.append(f"{len(records)} records against {len(whole[0])}")
            yield kind, done, apart[0] if apart else ""
            shutil.rmtree(folder)


def main() -> None:
    """Kill, resume, compare, say."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--moments", type=int, default=20, help="kills of each kind")
    options.add_argument("--layout", default="ddp", choices=("ddp", "fsdp"))
    options.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--scratch", help="folder for the runs; one in memory is fastest")
    asked = options.parse_args()
    began, failed = time.perf_counter(), False
    for kind, done, apart in outcome(tuple(asked.kinds), asked.moments, asked.layout, asked.seed, asked.scratch):
        failed |= bool(apart)
        said = f"NOT the unbroken one: {apart}" if apart else "the unbroken one"
        print(f"{asked.layout}, killed {kind:>5}: {done} times; the run is {said}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s, load of the machine {os.getloadavg()[0]:.1f}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
