"""All tasks one after the other, and what came of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from rebus.errors import RebusError
from rebus.evals.caption import caption, caption_from_codes
from rebus.evals.codebook import codebook
from rebus.evals.draw import draw
from rebus.evals.editing import edits, edits_in_a_row
from rebus.evals.exam import Exam
from rebus.evals.figures import Curve, Figure, Found, Sample
from rebus.evals.ground import ground
from rebus.evals.interleaved import interleaved
from rebus.evals.reconstruct import reconstruct
from rebus.evals.retrieval import retrieval
from rebus.evals.scenes import scenes
from rebus.evals.small import small
from rebus.evals.story import story
from rebus.evals.text_kept import text_kept
from rebus.evals.token_count import token_count
from rebus.evals.vqa import vqa
from rebus.system import System

Task = Callable[[Exam], Iterator[Found]]

TASKS: dict[str, Task] = {
    "reconstruct": reconstruct,
    "codebook": codebook,
    "tokens": token_count,
    "caption": caption,
    "caption_from_codes": caption_from_codes,
    "draw": draw,
    "scenes": scenes,
    "vqa": vqa,
    "retrieval": retrieval,
    "interleaved": interleaved,
    "text_kept": text_kept,
    "ground": ground,
    "small": small,
    "edits": edits,
    "edits_in_a_row": edits_in_a_row,
    "story": story,
}


@dataclass(frozen=True, eq=False)
class Results:
    """What a run of tasks found, and how it was made."""

    recipe: dict[str, Any]
    figures: list[Figure]
    samples: list[Sample]
    left_out: dict[str, str]
    """tasks that this system cannot be given, and why"""
    curves: list[Curve] = field(default_factory=list)


def evaluate(exam: Exam, tasks: Sequence[str] = tuple(TASKS), recipe: dict[str, Any] | None = None) -> Results:
    """Runs tasks by name. A task that the system or the data cannot be given is left out with its reason; `recipe` is
    added to what the results say of how they were made. Raises RebusError for a task that does not exist."""
    unknown = [name for name in tasks if name not in TASKS]
    if unknown or not tasks:
        raise RebusError(
            f"There is no task {', '.join(map(repr, unknown)) or 'named'}. The tasks are {', '.join(TASKS)}; "
            "name some of them."
        )
    figures: list[Figure] = []
    samples: list[Sample] = []
    curves: list[Curve] = []
    left_out: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for name in dict.fromkeys(tasks):
        began = time.monotonic()
        try:
            found = list(TASKS[name](exam))
        except RebusError as error:
            left_out[name] = str(error)
            continue
        if not found:
            left_out[name] = "this system does not offer what the task measures"
        figures += [one for one in found if isinstance(one, Figure)]
        samples += [one for one in found if isinstance(one, Sample)]
        curves += [one for one in found if isinstance(one, Curve)]
        seconds[name] = round(time.monotonic() - began, 1)
    made = {
        "system": exam.system.name,
        "weights": weights(exam.system),
        "pictures": len(exam.pictures),
        "torch": torch.__version__,
        "seconds": seconds,
        **asdict(exam.config),
        **(recipe or {}),
    }
    return Results(made, figures, samples, left_out, curves)


def values(task: Task, exam: Exam) -> Iterator[tuple[str, float]]:
    """(name, value) of every figure of a task: what a training stage logs."""
    for found in task(exam):
        if isinstance(found, Figure):
            yield found.name, found.value


def weights(system: System) -> dict[str, dict[str, Any]]:
    """Of each part that is a module: its parameters and a hash over names, shapes and numbers of all its tensors."""
    parts = {"tokenizer": system.tokenizer, "lm": system.lm, "detokenizer": system.detokenizer}
    return {
        name: {"parameters": sum(p.numel() for p in part.parameters()), "sha256": weights_hash(part)}
        for name, part in parts.items()
        if isinstance(part, nn.Module)
    }


def weights_hash(module: nn.Module) -> str:
    """The first 16 digits of a sha256 over all tensors of a module, under their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
