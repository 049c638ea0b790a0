"""Files of a run: written whole or not at all. (Its checkpoints are in `dcp.py`.)"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from rebus.errors import RebusError


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place and move it there once it is on the disk; what stood there stays until then.

    Raises RebusError when the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name too must survive a power cut
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        try:
            part.unlink(missing_ok=True)
        except OSError:
            pass  # the folder itself is what cannot be written
        raise RebusError(
            f"{path} could not be written: {error}. What was saved before is whole. "
            "Free some space or name a folder that can be written, then start again to resume."
        ) from error


def plain(value: Any) -> Any:
    """A config as JSON can hold it: dataclasses as objects, tuples as lists, anything else unknown as its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_json(path: Path, value: Any) -> None:
    """Write `plain(value)`, indented, whole or not at all."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """What a JSON file holds, or None where there is no such file."""
    return json.loads(path.read_text()) if path.exists() else None


def changes(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Each value that differs between two JSON values, as `path: before, now after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from changes(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    elif before != after:
        yield f"{where}: {before}, now {after}"


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all."""
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_whole(path, lambda file: file.write(safetensors_bytes(held, metadata)))


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that a state dict holds (codebooks, running statistics). All of them, since any may change in training."""
    kept = module.state_dict(keep_vars=True)
    return {name: b for name, b in module.named_buffers() if name in kept}


def first_line(error: BaseException) -> str:
    """The gist of an error whose message may be long or empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]


def check_plain(state: Any, what: str) -> None:
    """Raise RebusError unless `state` can be read back by a loader that executes nothing."""
    held = io.BytesIO()
    try:
        torch.save(state, held)
        held.seek(0)
        torch.load(held, weights_only=True)
    except (pickle.PicklingError, pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise RebusError(
            f"The state of {what} cannot be kept in a checkpoint: {first_line(error)}. "
            "Make it of numbers, strings, lists, dicts and tensors."
        ) from error
