"""Named tensors in files: safetensors in one piece or in shards, and pickled state dicts of others (read only, and only
what is plain data). Nothing is read before it is asked for, and reading and writing hold one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rebus.errors import RebusError

SHARD_BYTES = 4_000_000_000
"""A file is closed and the next begun before it would hold more than this."""


class LazyTensors(Mapping[str, Tensor]):
    """Names → tensors, each read only when it is asked for. `meta` has their shapes and dtypes, on the meta device."""

    def __init__(self, meta: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.meta = meta
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.meta:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)


def meta(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Shapes and dtypes of `tensors`, without reading them where they are lazy."""
    return tensors.meta if isinstance(tensors, LazyTensors) else {k: v.to("meta") for k, v in tensors.items()}


def lay_over(*layers: Mapping[str, Tensor]) -> LazyTensors:
    """A file that holds a subset, laid over a base: of equal names the last layer's tensor counts."""
    owner = {name: layer for layer in layers for name in layer}
    shapes = {name: tensor for layer in layers for name, tensor in meta(layer).items()}
    return LazyTensors(shapes, lambda name: owner[name][name])


# ------------------------------------------------------------------------------------------------ reading


def read_tensors(*paths: str | os.PathLike[str]) -> LazyTensors:
    """The tensors of one or several files, laid over one another in order.

    A path may be a `.safetensors` file, a `.safetensors.index.json` or `.bin.index.json` of shards, a pickled state
    dict (`.pt`, `.pth`, `.bin`), or a folder that holds one of these. Raises RebusError for what is none of them, is
    damaged, or would run code when unpickled.
    """
    return lay_over(*(_read(Path(path)) for path in paths))


def _read(path: Path) -> LazyTensors:
    if path.is_dir():
        return _read(_weights_in(path))
    if not path.exists():
        raise RebusError(f"There is no file {path}. Check the path of the weights.")
    if path.name.endswith(".index.json"):
        try:
            shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, LookupError, AttributeError, TypeError):
            raise RebusError(
                f"{path} does not say which shard holds which tensor. Copy or download it again."
            ) from None
        return lay_over(*(_read(path.parent / shard) for shard in shards))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pickle(path)


def _weights_in(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin", "*.pt", "*.pth"):
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise RebusError(f"{folder} holds several files of weights: {names}. Name the one that is meant.")
        if found:
            return found[0]
    raise RebusError(f"There are no weights in the folder {folder}. Name a .safetensors, .pt, .pth or .bin file.")


def _read_safetensors(path: Path) -> LazyTensors:
    try:
        with safe_open(path, "pt") as file:
            shapes = {}
            for name in file.keys():
                piece = file.get_slice(name)
                shapes[name] = torch.empty(piece.get_shape(), dtype=_DTYPES[piece.get_dtype()], device="meta")
    except SafetensorError as error:
        raise RebusError(f"{path} is not a whole safetensors file ({error}). Copy or download it again.") from None

    def read(name: str) -> Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    return LazyTensors(shapes, read)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {kind: name for name, kind in _DTYPES.items()}


def _read_pickle(path: Path) -> LazyTensors:
    tensors, mapped = _unpickle(path)
    if not mapped:
        return LazyTensors(meta(tensors), tensors.__getitem__)
    # opened again for each tensor: what a mapping has read counts as the process's memory until it is closed
    return LazyTensors(meta(tensors), lambda name: _unpickle(path)[0][name].clone())


def _unpickle(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a pickled state dict, and whether they lie in the file still (torch's old format cannot)."""
    mapped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or ["it ends too soon"])[0]
        raise RebusError(
            f"{path} cannot be read as a state dict ({reason}). Only files of plain tensors are opened, since others "
            "may run code; copy or download it again, or save its state dict as safetensors."
        ) from None
    for wrapper in ("state_dict", "model", "module"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not tensors:
        raise RebusError(f"{path} holds no named tensors. Name the file with the model's state dict.")
    return tensors, mapped


# ------------------------------------------------------------------------------------------------ writing


def write_tensors(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, str]:
    """Writes `name.safetensors`, or shards and their index, into `folder`; returns file name → sha256.

    `dtype` is what numbers with a fraction are stored as (None: as they are). A writer that must not leave half of it
    behind writes into a new folder and renames that, as `save_system` does.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in meta(tensors).items():
        item = (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize
        if shards[-1] and size + tensor.numel() * item > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += tensor.numel() * item
    files = [f"{name}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [f"{name}.safetensors"]
    for file, keys in zip(files, shards, strict=True):
        _write_safetensors(folder / file, keys, tensors, dtype)
    if len(shards) > 1:
        total = sum((folder / file).stat().st_size for file in files)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {k: f for f, keys in zip(files, shards, strict=True) for k in keys},
        }
        files.append(f"{name}.safetensors.index.json")
        (folder / files[-1]).write_text(json.dumps(index, indent=1) + "\n")
    return {file: sha256(folder / file) for file in files}


def write_pickle(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a pickled state dict, as published code reads it. Tensors lie in scratch files beside `path` until all of them
    are there, so that memory holds one at a time."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        mapped = {}
        for number, name in enumerate(tensors):
            tensor, file = _plain(tensors[name], None), Path(scratch, str(number))
            if tensor.numel():
                file.write_bytes(tensor.reshape(-1).view(torch.uint8).numpy().data)
                flat = torch.from_file(str(file), shared=False, size=tensor.numel(), dtype=tensor.dtype)
                tensor = flat.view(tensor.shape)
            mapped[name] = tensor
        torch.save(mapped, path)


def _write_safetensors(path: Path, names: list[str], tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """One file, tensor by tensor; the library's own writer would hold all of it in memory, twice."""
    shapes = meta(tensors)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    kinds = {name: dtype if dtype and shapes[name].is_floating_point() else shapes[name].dtype for name in names}
    ordered = sorted(names, key=lambda name: -kinds[name].itemsize)  # every tensor begins at a multiple of its item
    for name in ordered:
        end = at + shapes[name].numel() * kinds[name].itemsize
        header[name] = {"dtype": _NAMES[kinds[name]], "shape": list(shapes[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_plain(tensors[name], dtype).reshape(-1).view(torch.uint8).numpy().data)


def _plain(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).contiguous()


def sha256(path: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
