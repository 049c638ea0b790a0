"""`rebus train`: a stage's config becomes options, and the run goes where it is told."""

from __future__ import annotations

import json
import sys

import pytest

from rebus.apps import training

STAGE = '''
"""A line through points.

    rebus train ownstage --out state/line
"""
from dataclasses import dataclass, field
import torch
from rebus.train import Losses, Optim, Stage, Trainable

@dataclass(frozen=True)
class Shape:
    width: int = 1
    """how wide"""

@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    """how fast"""
    shape: Shape = field(default_factory=Shape)
    """how large"""

CONFIGS = {"paper": Config(lr=0.5), "mini": Config()}

class Points:
    at = 0
    def __iter__(self):
        for self.at in range(self.at + 1, 100):
            yield torch.full((4, 1), float(self.at % 3))
    def state_dict(self): return {"at": self.at}
    def load_state_dict(self, state): self.at = state["at"]

def stage(config: Config, slope: float = 2.0) -> Stage:
    module = torch.nn.Linear(1, config.shape.width)
    def step(module, x):
        return Losses((module(x) - slope * x).square().mean())
    optim = Optim(steps=50, precision="fp32")
    return Stage("ownstage", module, step, [Trainable("*", config.lr)], Points(), optim, config=config)
'''


@pytest.fixture
def ownstage(tmp_path, monkeypatch):
    (tmp_path / "ownstage.py").write_text(STAGE.lstrip())
    monkeypatch.syspath_prepend(tmp_path)
    yield "ownstage"
    sys.modules.pop("ownstage", None)


def test_the_config_and_the_stages_arguments_are_options(run, ownstage):
    ran = run("train", ownstage, "--help")
    assert ran.code == 0
    for word in (
        "--lr",
        "how fast",
        "--shape.width",
        "how large",
        "--slope",
        "--steps",
        "--out",
        "paper, mini",
        "A line",
    ):
        assert word in ran.out, word


@pytest.mark.parametrize(
    ("words", "lr"), [([], 0.1), (["--config", "paper"], 0.5), (["--config=paper", "--lr", "3"], 3)]
)
def test_named_configs_and_options_over_them(ownstage, words, lr):
    assert training.parse(ownstage, words).options.config.lr == lr


def test_a_run_trains_and_goes_on(run, ownstage, tmp_path):
    words = ["train", ownstage, "--out", tmp_path / "run", "--device", "cpu", "--shape.width", "2", "--steps"]
    ran = run(*words, 4)
    assert ran.code == 0 and "4 steps done" in ran.out and "step 4/4" in ran.out, ran
    assert (tmp_path / "run" / "weights.safetensors").exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["config"]["shape"]["width"] == 2 and config["optim"]["steps"] == 4
    assert "step 4 of 6" in run(*words, 6).out


def test_a_run_that_was_stopped_is_not_a_success(run, ownstage, tmp_path, monkeypatch):
    import rebus.train

    class Stopped:
        finished, step, fell = False, 3, None

    monkeypatch.setattr(rebus.train, "fit", lambda *args, **options: Stopped())
    ran = run("train", ownstage, "--out", tmp_path)
    assert ran.code == 2 and "stopped at step 3" in ran.err and ran.err.count("\n") == 1


def test_every_stage_is_listed_and_found(run):
    ran = run("train")
    assert ran.code == 0
    for name in training.stages():
        assert name in ran.out
        assert training.find_stage(name).CONFIGS
