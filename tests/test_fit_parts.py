"""The parts of training one by one: rates, averages, what learns, what decays, reporters."""

from __future__ import annotations

import io
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from rebus.train import Losses, Optim, Trainable, log, parallel, sharding, trainable_table
from rebus.train.batches import batch_size, to_device
from rebus.train.optimiser import build_optimiser, clip, select, set_modes
from rebus.train.process import isolated_random
from rebus.train.schedule import average, rate
from rebus.train.stage import Row, named_values


def test_cosine_warms_up_and_falls_to_its_floor() -> None:
    optim = Optim(steps=110, warmup=10, min_lr_ratio=0.05)
    rates = [rate(optim, s) for s in range(111)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10] == 1.0 and rates[60] == pytest.approx(0.525) and rates[110] == pytest.approx(0.05)
    assert all(a >= b for a, b in zip(rates[9:], rates[10:], strict=False))


def test_other_schedules() -> None:
    assert rate(Optim(steps=10, schedule="constant", min_lr_ratio=0.1), 9) == 1.0
    assert rate(Optim(steps=10, schedule="linear", min_lr_ratio=0.1), 5) == pytest.approx(0.55)
    assert Optim(steps=200, warmup=0.03).warmup_steps == 6


def test_per_epoch_cosine_is_seeds() -> None:
    """3e-5 to 3e-6 over 10 epochs of 5000 steps, warmed up from 3e-7 in 2000 steps of the first, constant in each."""
    optim = Optim(
        steps=50_000, warmup=2000, warmup_start=0.01, schedule="per_epoch_cosine", epoch_steps=5000, min_lr_ratio=0.1
    )
    assert 3e-5 * rate(optim, 0) == pytest.approx(3e-7 + (3e-5 - 3e-7) / 2000)
    assert rate(optim, 2000) == rate(optim, 4999) == 1.0
    assert rate(optim, 5000) == rate(optim, 9999) < 1.0
    assert 3e-5 * rate(optim, 25_000) == pytest.approx(1.65e-5)


def test_the_average_is_warmed_up() -> None:
    mean, weights = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    average(mean, weights, 0.999, 0)
    assert mean["w"].item() == pytest.approx(0.9)
    average(mean, weights, 0.0, 5)
    assert mean["w"].item() == 1.0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Dropout())
        self.head = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2), nn.Dropout())


def test_the_table_says_what_learns_and_the_first_pattern_wins() -> None:
    patterns = [Trainable("head.1.*", 0.0), Trainable("head.*", 1e-3)]
    assert trainable_table(Net(), patterns) == [
        Row("head.1.*", 2, 4, 0.0),
        Row("head.*", 2, 10, 1e-3),
        Row("(frozen)", 2, 12, 0.0),
    ]


def test_gradients_reach_what_is_named_and_only_that() -> None:
    net = Net().half()
    learning = select(net, [Trainable("head.*", 1e-3)])
    assert set(learning) == {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
    assert {p.dtype for p in learning.values()} == {torch.float32} and net.encoder[0].weight.dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        net.head(net.encoder(torch.ones(3, 2))).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == set(learning)


def test_only_matrices_decay_unless_all_do() -> None:
    net, patterns = Net(), [Trainable("encoder.*", 1e-3), Trainable("head.*", 1e-2, weight_decay=0.5)]

    def decays(optim: Optim) -> dict[str, tuple[float, float]]:
        groups = build_optimiser(select(net, patterns), patterns, optim).param_groups
        return {name: (g["peak"], g["weight_decay"]) for g in groups for name in g["names"]}

    some = decays(Optim(steps=1, weight_decay=0.1))
    assert some["encoder.0.weight"] == (1e-3, 0.1) and some["head.0.weight"] == (1e-2, 0.5)
    assert {d for name, (_, d) in some.items() if "bias" in name or "head.1" in name} == {0.0}
    every = decays(Optim(steps=1, weight_decay=0.1, decay="all"))
    assert every["encoder.0.bias"] == (1e-3, 0.1) and every["head.1.weight"] == (1e-2, 0.5)


def test_clipping_scales_the_whole_gradient() -> None:
    weight = nn.Parameter(torch.zeros(4))
    weight.grad = torch.full((4,), 5.0)
    assert clip({"w": weight}, Optim(steps=1, clip=2.0), "toy", 1) == {"grad_norm": 10.0}
    assert weight.grad.norm().item() == pytest.approx(2.0)
    weight.grad = torch.full((4,), torch.inf)
    assert clip({"w": weight}, Optim(steps=1, precision="fp16"), "toy", 1) == {"skipped": 1.0}


def test_frozen_parts_do_not_drop_out() -> None:
    net = Net().train()
    select(net, [Trainable("head.0.*", 1.0)])
    set_modes(net)
    assert not net.encoder.training and not net.encoder[1].training
    assert net.training and net.head.training and net.head[2].training and not net.head[1].training


def test_any_dataclass_with_a_total_is_a_loss() -> None:
    @dataclass
    class Other:
        total: Tensor
        text: Tensor
        image: Tensor | None = None
        logits_BV: Tensor | None = None

    one = torch.ones(())
    assert set(named_values(Other(one, one, None, torch.ones(2, 2)))) == {"loss", "text"}
    assert set(named_values(Losses(one, {"a": one, "b": 0.5}))) == {"loss", "a", "b"}
    assert named_values(Losses(one, {"loss": 0.5}))["loss"] is one


def test_batches_are_counted_and_moved() -> None:
    Pair = namedtuple("Pair", "x y")
    x_53, text = torch.zeros(5, 3), ["a", "b"]
    for batch, count in [(x_53, 5), ((x_53, 1), 5), ({"x": x_53, "t": text}, 5), (text, 2), (Pair(x_53, text), 5)]:
        assert batch_size(batch) == count
    moved = to_device({"x": [x_53], "p": Pair(x_53, text)}, torch.device("meta"))
    assert moved["x"][0].is_meta and moved["p"].x.is_meta and moved["p"].y == text


def test_the_callers_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    with isolated_random(torch.device("cpu"), 5):
        first = torch.rand(2)
    with isolated_random(torch.device("cpu"), 5):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_process_is_its_own_identity() -> None:
    x_BD, net = torch.ones(2, 3), Net()
    assert parallel.all_gather_features(x_BD) is x_BD and sharding.blocks(net) == []
    assert (parallel.rank(), parallel.world_size(), parallel.main_process()) == (0, 1, True)


RECORDS = [{"step": 1, "lr": 0.1, "loss": 2.0, "samples_per_second": 8.0}, {"step": 1, "accuracy": 0.25}]


def test_reporters_say_where_a_run_is() -> None:
    lines: list[str] = []
    screen = io.StringIO()
    for reporter in (log.Lines(lines.append), log.Rich(Console(file=screen, width=120)), log.Silent()):
        reporter.start("toy", [Row("head.*", 2, 10, 1e-3), Row("(frozen)", 1, 4, 0.0)], 0, 4)
        reporter.step(1)
        for record in RECORDS:
            reporter.record(record)
        reporter.note("a [note]")
        reporter.close()
    assert "step 1/4  lr 0.1  loss 2  samples_per_second 8" in lines and lines[-1] == "a [note]"
    for text in ("head.*", "loss 2", "accuracy 0.25", "a [note]", "1/4"):
        assert text in screen.getvalue()


def test_the_journal_drops_what_will_be_logged_again_and_draws_curves(tmp_path: Path) -> None:
    journal = log.Journal(tmp_path, 0)
    for step in range(1, 5):
        journal.record({"step": step, "lr": 0.1, "loss": 1 / step})
    journal.record({"step": 2, "accuracy": 0.5})
    journal.close()
    with open(journal.path, "a") as file:
        file.write('{"step": 5, "lo')  # a crash in the middle of a line
    again = log.Journal(tmp_path, 3)
    assert [r["step"] for r in log.read_journal(journal.path)] == [1, 2, 3, 2]
    assert again.evals == {"accuracy": 0.5} and again.evaluated == {2}
    again.close()
    assert log.draw_curves(tmp_path).read_bytes().startswith(b"\x89PNG")
