"""What goes wrong in a training says so and spoils nothing: losses, gradients, disks, checkpoints, settings."""

from __future__ import annotations

import errno
import math
import os
import pickle
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebus.errors import RebusError
from rebus.train import FitResult, Losses, Optim, Stage, Trainable, checkpointing, dcp, fit, log
from rebus.train.optimiser import select

OPTIM = Optim(steps=8, precision="fp32")
EMA = Optim(steps=8, precision="fp32", ema=0.9)


class Numbers:
    """Batches of one tensor, counted; `count` of them make an epoch."""

    def __init__(self, count: int = 4) -> None:
        self.count, self.at = count, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < self.count:
            self.at += 1
            yield torch.full((2, 3), float(self.at))
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def make(change: Callable[[int, Tensor], Tensor] = lambda count, loss: loss, **options: Any) -> Stage[Tensor]:
    counter = [0]

    def step(net: nn.Module, x_B3: Tensor) -> Losses:
        counter[0] += 1
        loss = change(counter[0], net(x_B3).square().mean())
        return Losses(loss, {"square": loss})

    net = nn.Linear(3, 3)
    nn.init.constant_(net.weight, 0.1)
    nn.init.constant_(net.bias, 0.1)
    held: dict[str, Any] = {"trainable": [Trainable("*", 1e-2)], "data": Numbers(), "optim": OPTIM} | options
    return Stage("toy", options.get("module", net), step, held["trainable"], held["data"], held["optim"])


def train(stage: Stage[Any], folder: Path, **options: Any) -> FitResult:
    return fit(stage, folder, device="cpu", **{"save_every": 2, **options})


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "draw_curves", lambda folder: folder)


def test_a_loss_that_is_not_a_number_stops_and_names_step_and_part(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match=r"toy: at step 5 the part 'square' of the loss is nan"):
        train(make(lambda count, loss: loss * math.nan if count == 5 else loss), tmp_path)
    saved = dcp.Checkpoint(dcp.checkpoints(tmp_path)[-1])
    held = {"weights/weight": torch.empty(3, 3), "weights/bias": torch.empty(3)}
    saved.load(held)
    assert saved.step == 4 and all(torch.isfinite(t).all() for t in held.values())


def test_a_gradient_that_is_not_finite_stops_and_names_the_parameter(tmp_path: Path) -> None:
    def spoil(count: int, loss: Tensor) -> Tensor:
        return loss + (loss - loss.detach()).clamp(min=0).sqrt() if count == 3 else loss  # 0 * inf backwards

    with pytest.raises(RebusError, match="at step 3 the gradient of weight, bias is not finite"):
        train(make(spoil), tmp_path)


def test_a_batch_that_fails_costs_itself_alone(tmp_path: Path) -> None:
    def spoil(count: int, loss: Tensor) -> Tensor:
        if count == 4:
            raise RebusError("A document has 334 words, but a row holds 320.")
        return loss

    with pytest.raises(RebusError, match="334 words"):
        train(make(spoil), tmp_path, save_every=100)
    assert dcp.Checkpoint(dcp.checkpoints(tmp_path)[-1]).step == 3
    assert train(make(), tmp_path, save_every=100).step == 8


def test_a_loss_that_reaches_nothing_stops(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="no gradient reaches any of the 2 parameters"):
        train(make(lambda count, loss: loss.detach().requires_grad_()), tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """A file-size limit stands for the full disk: the write fails in the middle of the file."""

    def fill(count: int, loss: Tensor) -> Tensor:
        if count == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        return loss

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RebusError, match="could not be written") as caught:
            train(make(fill), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "What was saved before is whole" in str(caught.value)
    assert [p.name for p in dcp.checkpoints(tmp_path)] == ["checkpoint-00000002"]
    assert not list(tmp_path.glob(".*"))
    assert train(make(), tmp_path).finished


def test_a_full_disk_under_the_log_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = log.Journal(tmp_path, 0)
    journal.path = Path("/dev/full")
    with pytest.raises(RebusError, match="could not be written"):
        journal.record({"step": 1, "loss": 0.5})


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RebusError, match="could not be written"):
        train(make(), tmp_path / "taken")


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpointing.write_whole(path, lambda file: file.write(b"old"))

    def fail(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RebusError, match="No space left"):
        checkpointing.write_whole(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("how", ["torn", "spoiled"])
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "run.pt", "process-00000.pt"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, name: str, how: str) -> None:
    whole = train(make(), tmp_path)
    torn = tmp_path / "checkpoint-00000008" / name
    kept = torn.read_bytes()
    # cut short, or of the right length with other bits in it
    torn.write_bytes(kept[: len(kept) // 2] if how == "torn" else bytes(255 - byte for byte in kept))
    watcher = Notes()
    again = train(make(), tmp_path, progress=watcher)
    assert again.losses == whole.losses[6:] and "checkpoint-00000008 cannot be read" in watcher.notes[0]
    assert train(make(), tmp_path).losses == []  # it was written anew
    for path in dcp.checkpoints(tmp_path):
        (path / name).unlink()
    with pytest.raises(RebusError, match="None of the 2 checkpoints"):
        train(make(), tmp_path)


class Notes(log.Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_checkpoint_executes_nothing(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    for name in (".metadata", "__0_0.distcp", "run.pt", "process-00000.pt", None):
        train(make(), tmp_path / "run")
        for path in dcp.checkpoints(tmp_path / "run"):
            if name is None:  # a single file, as earlier versions wrote it
                shutil.rmtree(path)
                torch.save({"step": Trap()}, path.with_name(f"{path.name}.pt"))
            elif name == ".metadata":
                (path / name).write_bytes(pickle.dumps(Trap()))
            else:
                torch.save({"step": Trap()}, path / name)
        with pytest.raises(RebusError, match="can be read"):
            train(make(), tmp_path / "run")
        assert not (tmp_path / "sprung").exists()
        shutil.rmtree(tmp_path / "run")


def test_a_checkpoint_of_earlier_versions_can_be_gone_on_from(tmp_path: Path) -> None:
    whole = train(make(optim=EMA), tmp_path)
    saved = dcp.Checkpoint(dcp.checkpoints(tmp_path)[-2])
    held = {name: torch.empty(shape) for name, shape in saved.shapes.items()}
    saved.load(held)
    parts: dict[str, dict[str, Any]] = {part: {} for part in ("weights", "buffers", "mean", "optimiser")}
    for place, tensor in held.items():
        part, *keys, name = place.split("/")
        (parts[part].setdefault(name, {}) if keys else parts[part])[(*keys, name)[0]] = tensor
    torch.save({**parts, **saved.shared, **saved.own(0)}, tmp_path / "checkpoint-00000006.pt")
    for path in dcp.checkpoints(tmp_path):
        if path.is_dir():
            shutil.rmtree(path)
    assert train(make(optim=EMA), tmp_path).losses == whole.losses[6:]


def test_data_whose_position_cannot_be_kept_is_refused_at_once(tmp_path: Path) -> None:
    class Odd(Numbers):
        def state_dict(self) -> dict[str, Any]:
            return {"rng": np.random.default_rng(0)}

    with pytest.raises(RebusError, match="state of the data of toy cannot be kept"):
        train(make(data=Odd()), tmp_path)


def test_empty_data_is_an_error_and_does_not_spin(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="The data of toy is empty"):
        train(make(data=Numbers(0)), tmp_path)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(make(), tmp_path)
    with pytest.raises(RebusError, match=r"'weight' is \(3, 3\) there, missing here"):
        train(make(trainable=[Trainable("bias", 1e-2)]), tmp_path)
    with pytest.raises(RebusError, match="at step 8, and this one is to start from the beginning"):
        train(make(), tmp_path, resume=False)


def test_a_changed_setting_is_noted_and_a_longer_run_goes_on(tmp_path: Path) -> None:
    train(make(), tmp_path)
    watcher = Notes()
    longer = train(make(optim=Optim(steps=10, precision="fp32", ema=0.9)), tmp_path, progress=watcher)
    assert longer.step == 10 and len(longer.losses) == 2
    assert watcher.notes[0].startswith("the checkpoint holds no averaged weights")
    assert watcher.notes[1:] == [
        "resumed with another setting: optim.ema: None, now 0.9",
        "resumed with another setting: optim.steps: 8, now 10",
    ]


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ([Trainable("weigth", 1.0)], "'weigth' decides no parameter: no name matches"),
        ([Trainable("*", 1.0), Trainable("bias", 1.0)], "all 1 that match are taken by earlier patterns"),
        ([Trainable("*", 0.0)], "Nothing would learn"),
        ([], "Nothing would learn: 2 parameters, 0 patterns"),
        ([Trainable("*", -1.0)], "not negative"),
    ],
)
def test_patterns_that_say_nothing_are_errors(tmp_path: Path, trainable: list[Trainable], message: str) -> None:
    with pytest.raises(RebusError, match=message.replace("(", r"\(")):
        train(make(trainable=trainable), tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_a_parameter_that_cannot_learn_is_an_error() -> None:
    net = nn.Module()
    net.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RebusError, match="codes is torch.int8"):
        select(net, [Trainable("*", 1.0)])


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"accumulate": 0}, {"warmup": 11}, {"warmup": 1.5}, {"ema": 1.0}, {"clip": 0.0}, {"epoch_steps": 0}],
)
def test_settings_that_cannot_work_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(RebusError):
        Optim(**{"steps": 10, **options})


@pytest.mark.parametrize("option", ["log_every", "eval_every", "save_every", "keep"])
def test_intervals_that_cannot_work_are_errors(tmp_path: Path, option: str) -> None:
    with pytest.raises(RebusError, match=f"{option}=-1"):
        train(make(), tmp_path, **{option: -1})


def test_control_c_saves_once_and_interrupts_twice(tmp_path: Path) -> None:
    def once(count: int, loss: Tensor) -> Tensor:
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    def twice(count: int, loss: Tensor) -> Tensor:
        once(count, loss)
        return once(count, loss)

    before = signal.getsignal(signal.SIGINT)
    result = train(make(once), tmp_path / "once")
    assert (result.step, result.stopped_by, result.finished) == (3, "SIGINT", False)
    assert dcp.checkpoints(tmp_path / "once")[-1].name == "checkpoint-00000003"
    with pytest.raises(KeyboardInterrupt):
        train(make(twice), tmp_path / "twice")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_outside_the_main_thread_trains(tmp_path: Path) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(train(make(), tmp_path)))
    thread.start()
    thread.join()
    assert results[0].finished
