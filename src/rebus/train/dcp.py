"""Checkpoints of a run, as torch.distributed.checkpoint writes them: a folder each, whole or not at all.

    checkpoint-00000500/
      .metadata  __0_0.distcp …      tensors, in as many shards as there were processes
      run.pt                         what all processes share: step, samples, loss scaler
      process-00000.pt …             what each has of its own: position in the data, random states

It is written under another name, and gets its own once every process has everything on the disk. As many processes as
one likes can read it. Nothing in it is executed when it is read. All processes must see the folder.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from rebus.errors import RebusError
from rebus.train import parallel
from rebus.train.checkpointing import first_line

NAME = re.compile(r"checkpoint-(\d{8})(\.pt)?")
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    KeyError,
    AttributeError,
    ValueError,
    AssertionError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    CheckpointException,
)
METADATA = (
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
)
"""Everything that a metadata file may name."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. (Files `.pt` are those of earlier versions, of one process.)"""
    return sorted((p for p in folder.glob("checkpoint-*") if NAME.fullmatch(p.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    found = NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


# ------------------------------------------------------------------------------------------------ writing


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    shared: dict[str, Any],
    own: dict[str, Any],
    keep: int,
    spoiled: Collection[str] = (),
) -> Path:
    """Write the state after `step` steps and drop all but the `keep` newest checkpoints. All processes call it together.
    One that is there already is left as it is, unless it is among those that were found `spoiled`.

    Raises RebusError, on all of them, when it could not be written; the checkpoints that were there are whole.
    """
    path = folder / f"checkpoint-{step:08d}"
    part = folder / f".{path.name}.part"
    if any(parallel.everyone(path.exists() and path.name not in spoiled)):
        return path
    try:
        parallel.together(lambda: _begin(folder, part), main=True)
        writer = FileSystemWriter(part)
        with _quiet():
            dcp.save(tensors, storage_writer=writer, no_dist=not parallel.several())
        parallel.together(lambda: _write(part / f"process-{parallel.rank():05d}.pt", own))
        parallel.together(lambda: _finish(part, path, shared, keep), main=True)
    except (OSError, RuntimeError, CheckpointException, RebusError) as error:
        if parallel.lost(error):
            raise
        if parallel.main_process():
            shutil.rmtree(part, ignore_errors=True)
        raise RebusError(
            f"{path} could not be written: {cause(error)}. What was saved before is whole. "
            "Free some space or name a folder that can be written, then start again to resume."
        ) from error
    return path


def _begin(folder: Path, part: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".checkpoint-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    part.mkdir()


def _write(path: Path, state: Mapping[str, Any]) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _finish(part: Path, path: Path, shared: Mapping[str, Any], keep: int) -> None:
    _write(part / "run.pt", shared)
    _sync(part)
    if path.exists():  # it was found spoiled
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.rename(part, path)
    _sync(path.parent)  # the new name too must survive a power cut
    for old in checkpoints(path.parent)[:-keep]:
        if old.is_dir():
            gone = old.with_name(f".{old.name}.old")  # half a checkpoint must not look like one
            os.rename(old, gone)
            shutil.rmtree(gone, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def cause(error: BaseException) -> str:
    """What lies at the bottom of an error that several processes may have had."""
    if isinstance(error, CheckpointException):
        return first_line(next((wrapped[0] for wrapped in error.failures.values()), error))
    return first_line(error)


# ------------------------------------------------------------------------------------------------ reading


class Checkpoint:
    """One checkpoint, opened: what is in it, and its tensors into tensors of one's own.

    Opening raises one of UNREADABLE where a file is missing or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held: dict[str, Tensor] = {}
        if path.is_dir():
            self.shared = torch.load(path / "run.pt", map_location="cpu", weights_only=True)
            self.reader = _Reader(path)
            self.shapes = self.reader.check()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.held, self.shared = _of_old(state)
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self.held.items()}
        self.step: int = self.shared["step"]
        self.world: int = self.shared["world"]

    def own(self, number: int) -> dict[str, Any]:
        """What process `number` had of its own."""
        if not self.path.is_dir():
            return self.shared["own"]
        return torch.load(self.path / f"process-{number:05d}.pt", map_location="cpu", weights_only=True)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Fill tensors, sharded or not, with those of the same names. All processes call it together."""
        if self.held:
            for name, tensor in tensors.items():
                parallel.copy_into(tensor, self.held[name])
            return
        with _quiet():
            dcp.load(tensors, storage_reader=self.reader, no_dist=not parallel.several())

    def names(self, part: str) -> list[str]:
        """The names of the tensors of a part (`weights`, `mean`, `buffers`, `optimiser/exp_avg` …)."""
        return [name.removeprefix(f"{part}/") for name in self.shapes if name.startswith(f"{part}/")]


class _Reader(FileSystemReader):
    """Reads metadata without executing anything."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def check(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors. Raises OSError when a file is shorter than what is said to be in it."""
        metadata = self.read_metadata()
        for place in (metadata.storage_data or {}).values():
            file = Path(self.path) / place.relative_path
            if file.stat().st_size < place.offset + place.length:
                raise OSError(f"{file.name} is cut short")
        held = metadata.state_dict_metadata.items()
        return {name: tuple(about.size) for name, about in held if isinstance(about, TensorStorageMetadata)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in METADATA or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint does not hold {module}.{name}")


def _of_old(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the rest of a checkpoint that is one file."""
    tensors = {
        f"{part}/{name}": x for part in ("weights", "buffers", "mean") for name, x in (state[part] or {}).items()
    }
    for name, values in state["optimiser"].items():
        tensors |= {f"optimiser/{key}/{name}": x for key, x in values.items()}
    own = {key: state[key] for key in ("data", "random", "random_cuda", "generators", "window")}
    shared = {"step": state["step"], "samples": state["samples"], "scaler": state["scaler"], "world": 1, "own": own}
    return tensors, shared


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def newest_first(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run as the first process sees them, on every process. Raises RebusError after the last, when
    there were some: none of them could be used."""
    names = [path.name for path in checkpoints(folder)] if parallel.main_process() else []
    found = [folder / name for name in parallel.everyone(names)[0]]
    yield from reversed(found)
    if found:
        raise RebusError(
            f"None of the {len(found)} checkpoints in {folder} can be read. Move them away to start from the beginning."
        )


def step_of_weights(folder: Path) -> int | None:
    """The step of the run whose weights lie in `folder`, or None where there are none that say so."""
    with (
        contextlib.suppress(OSError, SafetensorError, ValueError, TypeError),
        safe_open(folder / "weights.safetensors", "pt") as file,
    ):
        return int(file.metadata()["step"])
    return None
