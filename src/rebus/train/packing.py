"""Weights of finished stages as the parts of one saved system, and back: a saved system as the weights of its stages.

A run folder does not outlive its machine; what is committed is the saved system. `spread` lets training go on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rebus.checkpoint import SavedSystem
from rebus.checkpoint.tensors import write_tensors
from rebus.errors import RebusError

Places = Mapping[str, Sequence[tuple[str, str]]]
"""Part of a saved system → the stages that trained it, the later laid over the earlier, and how its names begin there."""


def gather(work: Path, places: Places) -> dict[str, dict[str, Tensor]]:
    """The parts from `work/STAGE/weights.safetensors`, by name, so that equal tensors make equal files. Raises FileNotFoundError where
    a stage has left none."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in places}
    for part, stages in places.items():
        for stage, prefix in stages:
            found = load_file(work / stage / "weights.safetensors")
            parts[part] |= {name.removeprefix(prefix): x for name, x in found.items() if name.startswith(prefix)}
    return {part: dict(sorted(tensors.items())) for part, tensors in parts.items()}


def spread(saved: SavedSystem, work: Path, places: Places) -> list[Path]:
    """Writes `work/STAGE/weights.safetensors`, float32, for every stage; each holds all of its parts, as after the last.

    Raises RebusError if one of the stages has a folder already: what was trained there is not written over.
    """
    stages: dict[str, list[tuple[str, str]]] = {}
    for part, held in places.items():
        for stage, prefix in held:
            stages.setdefault(stage, []).append((part, prefix))
    there = [str(work / stage) for stage in stages if (work / stage).exists()]
    if there:
        raise RebusError(
            f"{', '.join(there)} exist already, and what was trained there is not written over. "
            "Name another work folder, or move these away."
        )
    written = []
    for stage, parts in stages.items():
        tensors = {prefix + name: saved.tensors(part)[name] for part, prefix in parts for name in saved.tensors(part)}
        partial = work / f"{stage}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_tensors(partial, "weights", tensors, dtype=torch.float32)
        partial.rename(work / stage)
        written.append(work / stage / "weights.safetensors")
    return written
