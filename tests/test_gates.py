"""Gates: a run that loses what it could ends with the last good weights; one that does not is as without them."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests import tiny
from torch import Tensor, nn

from rebus.document import Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.evals.battery import battery, chosen
from rebus.lm import InterleavedLM
from rebus.sequence import collate
from rebus.train import FitResult, Gate, Losses, Margin, Optim, Stage, Trainable, fit
from rebus.train.log import read_journal
from rebus.visual import Codes

CPU = torch.device("cpu")


class Count:
    """Batches 0, 1, 2 … without end."""

    def __init__(self) -> None:
        self.at = 0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            self.at += 1
            yield torch.full((1,), float(self.at))

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class Level(nn.Module):
    """One number that goes up by 1 in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))


class Seen:
    """What is told of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.records: list[dict[str, float]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def record(self, values: dict[str, float]) -> None:
        self.records.append(dict(values))

    def start(self, *given: object) -> None: ...
    def step(self, step: int) -> None: ...
    def close(self) -> None: ...


def stage(curve: list[float], *, kill: int | None = None, ema: float | None = None, **gate: Any) -> Stage[Tensor]:
    """A run of 12 steps; the figure `able` at level n is curve[n], and what is measured is counted."""
    net, asked = Level(), []

    def measure() -> Iterator[tuple[str, float]]:
        torch.rand(5)  # what a battery draws must not move the training's draws
        assert not net.training and not torch.is_grad_enabled()
        asked.append(round(net.level.item()))
        yield "able", curve[round(net.level.item())]
        yield "other", 7.0

    def step(net: nn.Module, batch: Tensor) -> Losses:
        if batch.item() == kill:
            os.kill(os.getpid(), signal.SIGTERM)
        return Losses(-net.level + 0 * torch.rand(()))

    optim = Optim(steps=12, schedule="constant", precision="fp32", ema=ema, clip=None)
    margins = gate.pop("margins", {"able": Margin(0.25)})
    made = Stage("toy", net, step, [Trainable("level", 1.0)], Count(), optim)
    made.gates = [Gate(measure, margins=margins, **{"every": 3, **gate})]
    made.config = asked
    return made


def run(made: Stage[Tensor], folder: Path, **options: Any) -> tuple[FitResult, Seen]:
    seen = Seen()
    result = fit(made, folder, device=CPU, progress=seen, **{"log_every": 4, "save_every": 4, **options})  # type: ignore[arg-type]
    return result, seen


def level(file: Path) -> int:
    return round(load_file(file)["level"].item())


FALLING = [0.5, 0, 0, 0.9, 0, 0, 0.7, 0, 0, 0.6, 0, 0, 0.9]


def test_a_run_that_falls_stops_with_the_last_good_weights(tmp_path: Path) -> None:
    made = stage(FALLING)
    result, seen = run(made, tmp_path)
    assert (result.step, result.finished, result.stopped_by) == (9, False, None)
    assert result.fell == "able fell from 0.9 (best) to 0.6, by more than 0.25"
    assert seen.notes == [f"step 9: {result.fell}", "the weights are those of step 6 again"]
    assert level(result.weights) == 6 == round(made.module.level.item())
    assert [r for r in read_journal(tmp_path / "log.jsonl") if "gate/able" in r] == [
        {"step": at, "gate/able": FALLING[at], "gate/other": 7.0} for at in (0, 3, 6, 9)
    ]
    assert result.evals == {"gate/able": 0.6, "gate/other": 7.0}
    again, seen = run(stage(FALLING), tmp_path)  # it is judged as before, and nothing is measured or trained
    assert (again.step, again.fell, again.losses) == (9, result.fell, []) and level(result.weights) == 6
    assert seen.notes == ["the weights are those of step 6 again"]
    on, _ = run(stage(FALLING, then="warn"), tmp_path)  # unless it only warns now
    assert on.finished and on.step == 12 and level(on.weights) == 12


def test_a_run_that_only_warns_goes_on(tmp_path: Path) -> None:
    result, seen = run(stage(FALLING, then="warn"), tmp_path)
    assert result.finished and result.fell is None and level(result.weights) == 12
    assert seen.notes == ["step 9: able fell from 0.9 (best) to 0.6, by more than 0.25"]
    assert level(tmp_path / "last-good.safetensors") == 12


def test_without_a_fall_a_run_is_as_without_gates(tmp_path: Path) -> None:
    made, plain = stage([0.5] * 13), stage([0.5] * 13)
    plain.gates = []
    one, other = run(made, tmp_path / "one")[0], run(plain, tmp_path / "other")[0]
    assert one.losses == other.losses and one.finished and one.fell is None
    assert made.config == [0, 3, 6, 9, 12]  # before the first step, at intervals, after the last
    states = [torch.load(tmp_path / name / "checkpoint-00000012" / "process-00000.pt") for name in ("one", "other")]
    assert torch.equal(states[0]["random"], states[1]["random"])


def test_a_fall_after_the_last_step_is_no_success(tmp_path: Path) -> None:
    result, _ = run(stage([0.9] * 12 + [0.1], every=5), tmp_path)
    assert (result.step, result.finished, level(result.weights)) == (12, False, 10)


@pytest.mark.parametrize("kill", [2, 3, 7, 8])
def test_a_resumed_run_judges_as_an_unbroken_one(kill: int, tmp_path: Path) -> None:
    whole, _ = run(stage(FALLING), tmp_path / "whole")
    first, _ = run(stage(FALLING, kill=kill), tmp_path / "broken")
    assert first.stopped_by == "SIGTERM" and first.step == kill and first.fell is None
    second, _ = run(stage(FALLING), tmp_path / "broken")
    assert (second.fell, second.step, level(second.weights)) == (whole.fell, 9, 6)
    gates = [[r for r in read_journal(tmp_path / x / "log.jsonl") if "gate/able" in r] for x in ("whole", "broken")]
    assert gates[0] == gates[1]


def test_averaged_weights_are_what_is_measured_and_kept(tmp_path: Path) -> None:
    result, _ = run(stage([0.5] * 3 + [0.1] * 10, ema=0.5, every=2), tmp_path)
    assert result.fell and 0 < load_file(result.weights)["level"].item() < 3


@pytest.mark.parametrize(
    ("margin", "before", "now", "held"),
    [
        (Margin(0.1), [0.5, 0.8, 0.6], 0.7, None),
        (Margin(0.1), [0.5, 0.8, 0.6], 0.69, 0.8),
        (Margin(0.1, against="start"), [0.5, 0.8], 0.41, None),
        (Margin(0.1, against="start"), [0.5, 0.8], 0.39, 0.5),
        (Margin(2.0, "lower"), [10.0, 8.0], 9.9, None),
        (Margin(2.0, "lower"), [10.0, 8.0], 10.1, 8.0),
        (Margin(0.5, "lower", relative=True), [10.0, 8.0], 12.0, None),
        (Margin(0.5, "lower", relative=True), [10.0, 8.0], 12.1, 8.0),
        (Margin(0.1), [0.5], math.nan, 0.5),
        (Margin(0.1), [math.nan], 0.1, None),
        (Margin(0.1), [], 0.1, None),
        (Margin(0.0), [0.5], 0.5, None),
    ],
)
def test_what_is_a_fall(margin: Margin, before: list[float], now: float, held: float | None) -> None:
    assert margin.fallen(before, now) == held


def test_gates_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RebusError, match="A margin is how far a figure may fall, but this one is -1"):
        Margin(-1)
    with pytest.raises(RebusError, match="every=0 and it watches 1 figures"):
        Gate(lambda: [], 0, {"able": Margin(0.1)})
    with pytest.raises(RebusError, match="watches absent, but what was measured is able, other"):
        run(stage(FALLING, margins={"absent": Margin(0.1)}), tmp_path / "a")
    twice = stage(FALLING)
    twice.gates *= 2
    with pytest.raises(RebusError, match="able is watched by two gates"):
        run(twice, tmp_path / "b")
    made = stage(FALLING)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/last-good.safetensors").mkdir()
    with pytest.raises(RebusError, match="last-good.safetensors could not be written"):
        run(made, tmp_path / "c")


# ------------------------------------------------------------------------------------------------ a real fall


class Lesson:
    """The same batch of sequences again and again."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield [self.batch]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def learning(lm: InterleavedLM, batch: Any, steps: int, lr: float, **gates: Any) -> Stage[Any]:
    optim = Optim(steps=steps, schedule="constant", precision="fp32")
    return Stage("tiny", lm, lambda lm, held: lm(held[0]), [Trainable("*", lr)], Lesson(batch), optim, **gates)


@pytest.mark.parametrize("paper", ["seed", "lavit"])
def test_a_language_model_that_is_made_to_forget_is_stopped_in_time(paper: str, tmp_path: Path) -> None:
    """A tiny model learns four captions, four drawings and two texts; then it is taught one caption alone, much too fast."""
    system = tiny.fresh(paper)
    system.lm.requires_grad_(True)
    codes = torch.randint(60, (4, 8), generator=tiny.generator(1))
    pictures = [Image(understood=(c := Codes(ids_N, system.tokenizer.source)), generated=c) for ids_N in codes]
    words = ["a tree", "two cats", "my house", "blue sky"]
    documents = {
        "caption": [Document((user(i), assistant(w))) for i, w in zip(pictures, words, strict=True)],
        "draw": [Document((user(w), assistant(i))) for i, w in zip(pictures, words, strict=True)],
    }
    plain = json.loads(files("rebus.evals").joinpath("plain_text.json").read_text())["held_back"][:2]
    lessons = [*documents["caption"], *documents["draw"], *(Document((assistant(text),)) for text in plain)]
    rows = [system.grammar.serialize(lesson, template="plain", loss="all") for lesson in lessons]
    taught = collate(rows, pad_id=system.grammar.special.pad)
    fit(learning(system.lm, taught, 80, 1e-2), tmp_path / "taught", device=CPU)

    def measure() -> Iterator[tuple[str, float]]:
        return battery(system, documents, template="plain", texts=2)

    before = dict(measure())
    print(before)
    assert before["caption/chosen"] == 1.0 and chosen(system, documents["draw"], template="plain") >= 0.75
    margins = {"caption/chosen": Margin(0.4), "text_kept/perplexity": Margin(1.0, "lower", relative=True)}
    one = collate([rows[0]], pad_id=system.grammar.special.pad)
    made = learning(system.lm, one, 40, 3e-2, gates=[Gate(measure, 4, margins)])
    result = fit(made, tmp_path / "forgets", device=CPU)
    assert result.fell is not None and not result.finished and result.step < 40
    last = result.evals["gate/text_kept/perplexity"]
    assert last > 2 * before["text_kept/perplexity"] or result.evals["gate/caption/chosen"] < 0.6
    after = dict(measure())  # the module has its last good weights again
    assert after["caption/chosen"] > 0.6 and after["text_kept/perplexity"] <= 2 * before["text_kept/perplexity"]
