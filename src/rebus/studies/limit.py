"""A limit on the time of an arm: all arms of a study get the same number of steps, and none takes longer than it may."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rebus.train import Stage, fit
from rebus.train.checkpointing import persistent_buffers, write_weights, write_whole
from rebus.train.optimiser import select

SHARE = 0.8
"""Of the time that an arm may take, what is planned with: a machine is not equally fast at all times."""


class OutOfTime(Exception):
    """Raised by a step that begins when the time is over."""


def affordable(out: Path, name: str, wanted: int, minutes: float, step: Callable[[], float]) -> int:
    """How many of the `wanted` steps fit into the minutes, at least one; `step` takes one step of the slowest arm and returns
    its seconds. What was found is kept in `out`, so that a study that goes on gives later arms what earlier ones had."""
    file = out / "steps.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    asked = {"wanted": wanted, "minutes": minutes}
    if (found := held.get(name)) is None or found["asked"] != asked:
        step()  # the first one pays for what is set up once
        seconds = sorted(step() for _ in range(3))[1]
        steps = max(1, min(wanted, int(SHARE * 60 * minutes / max(seconds, 1e-6))))
        held[name] = {"asked": asked, "seconds": seconds, "steps": steps}
        write_whole(file, lambda made: made.write(json.dumps(held, indent=1).encode()))
    return int(held[name]["steps"])


def fit_within(stage: Stage[Any], folder: Path, minutes: float, **options: Any) -> int:
    """`fit`, ended when the minutes are over: the module is then as far as it came, and its weights are written as at the
    end of a run. Returns the steps that were taken."""
    begun, taken, step = time.monotonic(), 0, stage.step

    def timed(module: Any, batch: Any) -> Any:
        nonlocal taken
        if time.monotonic() - begun > 60 * minutes:
            raise OutOfTime
        taken += 1
        return step(module, batch)

    stage.step = timed
    try:
        fit(stage, folder, **options)
    except OutOfTime:
        held = {**select(stage.module, stage.trainable), **persistent_buffers(stage.module)}
        write_weights(folder / "weights.safetensors", held, {"stage": stage.name, "step": str(taken)})
        stage.module.eval()
    return taken // stage.optim.accumulate
