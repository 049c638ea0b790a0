"""`fit`: it learns, a resumed run is the unbroken run, and what goes wrong says so and spoils nothing."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rebus.train import FitResult, Losses, Optim, Stage, Trainable, dcp, fit, log

CPU = torch.device("cpu")


class Points:
    """Shuffled batches of a line's points, an epoch of 5 batches; moves its position before it yields."""

    def __init__(self, batch: int = 4) -> None:
        g = torch.Generator().manual_seed(7)
        self.x_N3 = torch.randn(20, 3, generator=g)
        self.y_N = self.x_N3 @ torch.tensor([1.0, -2.0, 0.5])
        self.batch, self.epoch, self.at = batch, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = list(range(20))
        random.Random(self.epoch).shuffle(order)
        while self.at < 20:
            picked = order[self.at : self.at + self.batch]
            self.at += self.batch
            yield self.x_N3[picked], self.y_N[picked]
        self.epoch, self.at = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]


class Net(nn.Module):
    """A frozen part, a part that learns, dropout, and a buffer that changes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.frozen = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5))
            self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
            self.head = nn.Linear(8, 1)


@dataclass(frozen=True)
class Config:
    width: int = 8
    where: Path = Path("somewhere")


def make(
    optim: Optim,
    before: Callable[[Net, int], None] = lambda net, count: None,
    trainable: list[Trainable] | None = None,
) -> Stage[tuple[Tensor, Tensor]]:
    noise = torch.Generator().manual_seed(3)
    counter = [0]

    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Losses:
        assert isinstance(net, Net)
        counter[0] += 1
        before(net, counter[0])
        x_B3, y_B = batch
        x_B3 = x_B3 + 0.01 * torch.randn(x_B3.shape, generator=noise)
        error = (net.head(net.body(net.frozen(x_B3)))[:, 0].float() - y_B).square().mean()
        small = net.head.weight.square().mean()
        return Losses(error + 0.01 * small, {"error": error, "small": small})

    net = Net()
    trainable = trainable or [Trainable("body.*", 1e-2), Trainable("head.*", 3e-2, weight_decay=0.1)]

    def task() -> Iterator[tuple[str, float]]:
        torch.rand(3)  # an evaluation that draws must not move the training's draws
        yield "head", float(net.head.weight.norm())
        yield "training", float(net.training)

    return Stage(
        "toy", net, step, trainable, Points(), optim, evals=[task], config=Config(), generators={"noise": noise}
    )


def train(stage: Stage[Any], folder: Path, **options: Any) -> FitResult:
    return fit(stage, folder, device=CPU, **{"log_every": 2, "save_every": 3, "eval_every": 4, **options})


FULL = Optim(steps=12, warmup=3, precision="fp32", weight_decay=0.01)
VARIANTS = [
    FULL,
    Optim(steps=12, warmup=0.25, precision="bf16", accumulate=3, schedule="linear", clip=0.1),
    Optim(steps=12, warmup=2, precision="fp32", ema=0.99, schedule="per_epoch_cosine", epoch_steps=4, clip=None),
    Optim(steps=12, warmup=2, precision="fp16", ema=0.9),
]


@pytest.mark.parametrize("optim", VARIANTS)
@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_resumed_run_is_the_unbroken_run(tmp_path: Path, optim: Optim, stop_at: int) -> None:
    whole = train(make(optim), tmp_path / "whole")

    def interrupt(net: Net, count: int) -> None:
        if count == stop_at * optim.accumulate:
            os.kill(os.getpid(), signal.SIGTERM)

    first = train(make(optim, interrupt), tmp_path / "broken")
    assert (first.step, first.finished, first.stopped_by) == (stop_at, False, "SIGTERM")
    second_stage = make(optim)
    second = train(second_stage, tmp_path / "broken")
    assert second.finished and second.step == 12
    assert first.losses + second.losses == whole.losses
    left, right = load_file(whole.weights), load_file(second.weights)
    assert left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
    times = ("samples_per_second",)
    a, b = (
        [{k: v for k, v in r.items() if k not in times} for r in log.read_journal(tmp_path / run / "log.jsonl")]
        for run in ("whole", "broken")
    )
    assert a == b


def test_a_crash_between_checkpoints_goes_back_to_the_last(tmp_path: Path) -> None:
    whole = train(make(FULL), tmp_path / "whole")

    def crash(net: Net, count: int) -> None:
        if count == 9:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(make(FULL, crash), tmp_path / "broken")
    again = train(make(FULL), tmp_path / "broken")
    assert again.losses == whole.losses[6:]
    steps = [r["step"] for r in log.read_journal(tmp_path / "broken" / "log.jsonl") if "loss" in r]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_what_a_run_leaves_in_its_folder(tmp_path: Path) -> None:
    stage = make(FULL)
    result = train(stage, tmp_path)
    assert [p.name for p in dcp.checkpoints(tmp_path)] == ["checkpoint-00000009", "checkpoint-00000012"]
    held = load_file(result.weights)
    assert {k for k in held if k.startswith("frozen")} == set()
    assert torch.equal(held["head.weight"], stage.module.state_dict()["head.weight"])
    assert "body.1.running_mean" in held
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"] == {"width": 8, "where": "somewhere"} and config["optim"]["warmup"] == 3
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    records = log.read_journal(tmp_path / "log.jsonl")
    assert {"step", "lr", "loss", "error", "small", "grad_norm", "samples", "samples_per_second"} == set(records[0])
    assert result.evals["training"] == 0.0 and stage.module.training
    assert not list(tmp_path.glob(".*"))
    assert result.losses[-1] < result.losses[0]
    again = train(stage, tmp_path)
    assert again.finished and again.losses == []
