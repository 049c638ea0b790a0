"""A system on disk: a folder of weights, one set for each part, and `system.json`, which says what they are.

The folder is written whole or not at all: it is filled under another name and renamed when everything is on the disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import types
import typing
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rebus.checkpoint.rules import check_complete
from rebus.checkpoint.tensors import LazyTensors, lay_over, read_tensors, sha256, write_tensors
from rebus.errors import RebusError

FILE = "system.json"
FORMAT = 1
UNWRITTEN = {"folder", "expected"}
"""Fields of a saved system that say how it was read."""
C = TypeVar("C")


@dataclass(frozen=True)
class SavedSystem:
    """What `system.json` says, and where it lies."""

    name: str
    """The paper and its variant: `seed:mini`."""
    config: dict[str, Any]
    """The resolved config, as `config_to_json` gives it."""
    source: str = ""
    """Where the weights come from: a training run, or the published files they were converted from."""
    base: str | None = None
    """The system that these weights are laid over, if they hold only a part of what a model needs."""
    base_hashes: dict[str, str] = field(default_factory=dict)
    """For each part of that system, the hash of what lay beside these weights when they were written."""
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each part, its files and their sha256."""
    dropped: dict[str, dict[str, str]] = field(default_factory=dict)
    """For each part, published tensors that were left out, with the reason."""
    ignored: dict[str, list[str]] = field(default_factory=dict)
    """For each part, published tensors that no rule knew and that were let pass on request."""
    folder: Path = Path()
    """Where it was loaded from; not written."""
    expected: dict[str, str] = field(default_factory=dict)
    """Of a base: the hashes of the parts that what is laid over it was made with; not written."""

    def tensors(self, part: str) -> LazyTensors:
        """The tensors of a part ("tokenizer", "lm", "detokenizer"). Raises RebusError if it is not there."""
        if part not in self.files:
            parts = ", ".join(self.files) or "none"
            raise RebusError(
                f"{self.folder} has no weights for the part {part!r}; it has {parts}. Load only those parts, or lay it "
                "over a base that has the rest."
            )
        if self.expected.get(part, self.hash(part)) != self.hash(part):
            raise RebusError(
                f"The part {part!r} in {self.folder} is {self.hash(part)}, but what is laid over it was made with "
                f"{self.expected[part]}. Put the weights that belong together into one folder."
            )
        weights = [self.folder / file for file in self.files[part] if file.endswith(".safetensors")]
        return read_tensors(*weights)

    def shared(self) -> SavedSystem | None:
        """The base that these weights are laid over, which lies beside them; None where there is none. Raises RebusError
        where it is not there; and so does reading a part of it that is another than these weights were made with."""
        if self.base is None:
            return None
        return dataclasses.replace(load_system(self.folder.parent / self.base), expected=self.base_hashes)

    def hash(self, part: str) -> str:
        """Eight digits that tell the weights of a part from others."""
        return hashlib.sha256("".join(sorted(self.files.get(part, {}).values())).encode()).hexdigest()[:8]

    def verify(self) -> None:
        """Raises RebusError naming every file that is missing or is not the one that was written."""
        wrong = [
            f"  {name}: {'missing' if not (self.folder / name).exists() else 'its sha256 is another'}"
            for files in self.files.values()
            for name, digest in files.items()
            if not (self.folder / name).exists() or sha256(self.folder / name) != digest
        ]
        if wrong:
            listed = "\n".join(wrong)
            raise RebusError(f"{self.folder} is not as it was written:\n{listed}\nCopy or download it again.")


def save_system(
    folder: str | os.PathLike[str],
    system: SavedSystem,
    parts: Mapping[str, Mapping[str, Tensor]],
    *,
    others: Mapping[str, Mapping[str, bytes]] | None = None,
    loose: Mapping[str, bytes] | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """Writes the parts (state dicts, possibly lazy) and `system.json` into a new `folder`; returns what was written.

    `others` are further files of a part by name, such as the text tokenizer of a language model; `loose` are files that
    nobody checks, such as a model card.

    Raises RebusError if there is something at `folder` already, unless `overwrite`; then the old folder is replaced
    only when the new one is complete.
    """
    target = Path(folder)
    if target.exists() and not overwrite:
        raise RebusError(f"There is something at {target} already. Choose another folder, or say `--overwrite`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        files = {part: write_tensors(partial, part, tensors, dtype=dtype) for part, tensors in parts.items()}
        for part, contents in (others or {}).items():
            for name, content in contents.items():
                (partial / name).write_bytes(content)
                files.setdefault(part, {})[name] = sha256(partial / name)
        for name, content in (loose or {}).items():
            (partial / name).write_bytes(content)
        beside = None if system.base is None else target.parent / system.base
        hashes = {}
        if beside is not None and (beside / FILE).exists():
            base = load_system(beside)
            hashes = {part: base.hash(part) for part in base.files}
        written = dataclasses.replace(system, files=files, folder=target, base_hashes=hashes)
        held = {"format": FORMAT} | {k: v for k, v in dataclasses.asdict(written).items() if k not in UNWRITTEN}
        (partial / FILE).write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n")
        for file in partial.iterdir():
            _to_disk(file)
        _to_disk(partial)
        _put(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def _put(partial: Path, target: Path) -> None:
    """Renames `partial` to `target`; an older folder steps aside first and is deleted last."""
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.old"
    if target.exists():
        target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        if aside.exists():
            aside.rename(target)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)
    elif aside.exists():
        aside.unlink()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_system(folder: str | os.PathLike[str]) -> SavedSystem:
    """What `folder` says of itself; weights are read later.

    Raises RebusError if it is not a saved system, or one of a format that is not known here.
    """
    path = Path(folder) / FILE
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        raise RebusError(
            f"There is no {FILE} in {folder}, so it is not a saved system. Published weights are made one with "
            "`rebus convert`."
        ) from None
    except json.JSONDecodeError as error:
        raise RebusError(f"{path} is damaged ({error}). Copy or download the folder again.") from None
    number = held.pop("format", None)
    names = {f.name for f in dataclasses.fields(SavedSystem)} - UNWRITTEN
    if number != FORMAT or not held.keys() <= names:
        raise RebusError(
            f"{path} is of format {number} with {', '.join(sorted(held))}, but format {FORMAT} is read here. "
            "Update the library, or write the system again with this one."
        )
    saved = SavedSystem(**held, folder=Path(folder))
    # a folder may come from anywhere: it speaks of its own files, and of a base that lies beside it
    named = [*([] if saved.base is None else [saved.base]), *(name for part in saved.files.values() for name in part)]
    if outside := [name for name in named if Path(name).name != name]:
        raise RebusError(
            f"{path} names {outside[0]!r}, which lies outside of its folder. Download the folder again, or leave it alone."
        )
    return saved


# ------------------------------------------------------------------------------------------------ into modules


def load_module(
    module: nn.Module,
    *layers: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    ignore_unexpected: Sequence[str] = (),
) -> list[str]:
    """Fills `module` (which may have been built in `without_weights`) with tensors laid over one another; returns the
    names that were there but not loaded, all of them matching a pattern of `ignore_unexpected`.

    `dtype` is for numbers with a fraction (None: as the module has them). A parameter with several names (a tied table)
    needs only one of them and stays tied. Raises RebusError listing everything that is missing, misshapen or
    unexpected, before anything is changed.
    """
    tensors = lay_over(*layers)
    want = module.state_dict()
    surplus = [name for name in tensors if name not in want]
    ignored = [name for name in surplus if any(fnmatchcase(name, pattern) for pattern in ignore_unexpected)]
    tied = _tied(module)
    source = {name: next((n for n in tied.get(name, [name]) if n in tensors), name) for name in want}
    have = {name: tensors.meta[source[name]] for name in want if source[name] in tensors}
    check_complete(have, want, [name for name in surplus if name not in ignored])

    values = {}
    for name, old in want.items():
        number = (dtype or old.dtype) if old.is_floating_point() else old.dtype
        place = device or ("cpu" if old.is_meta else old.device)
        values[name] = tensors[source[name]].to(device=place, dtype=number)
    module.load_state_dict(values, assign=True)
    for name, names in tied.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(names[0]))
    return ignored


def _tied(module: nn.Module) -> dict[str, list[str]]:
    """Names of parameters that are one and the same under several names → all of its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: group for group in names.values() if len(group) > 1 for name in group}


@contextmanager
def without_weights() -> Iterator[None]:
    """Within it, modules are built with parameters on the meta device: no memory, no random numbers. Buffers are real,
    because what is computed and not stored (a table of frequencies) would never be filled."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with _SkipInit():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _SkipInit(TorchFunctionMode):
    """Skips what would initialise a tensor on the meta device: it has no values, and trying loads torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.startswith("_") and name != "requires_grad_"
        named = kwargs or {}
        first = args[0] if args else named.get("tensor")  # torch.nn.init passes it by name
        if in_place and isinstance(first, Tensor) and first.is_meta:
            return first
        return func(*args, **named)


# ------------------------------------------------------------------------------------------------ configs as JSON


def config_to_json(config: Any) -> Any:
    """A config (frozen dataclasses, tuples, mappings, plain values) as JSON data."""
    match config:
        case None | bool() | int() | float() | str():
            return config
        case tuple() | list():
            return [config_to_json(item) for item in config]
        case Mapping():
            return {key: config_to_json(value) for key, value in config.items()}
    if dataclasses.is_dataclass(config):
        return {f.name: config_to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
    raise TypeError(f"a config holds dataclasses, tuples, mappings and plain values, not {type(config).__name__}")


def config_from_json(kind: type[C], data: Any) -> C:
    """The inverse: `data` as a config of class `kind`; fields that are not named keep their defaults.

    Raises RebusError naming a field that the class does not have.
    """
    return typing.cast(C, _value(kind, data, kind.__name__))


def _value(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(_member(arguments, data), data, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        unknown = data.keys() - {f.name for f in dataclasses.fields(kind)}
        if unknown:
            raise RebusError(
                f"The saved config has {', '.join(sorted(unknown))} in {where}, which this version of the library does "
                "not know. Update the library, or write the system again with this one."
            )
        return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()})
    if origin is tuple:
        each = [arguments[0]] * len(data) if arguments[1:] == (...,) else arguments
        return tuple(_value(item, value, where) for item, value in zip(each, data, strict=True))
    if origin in (list, dict):
        many = data.items() if origin is dict else enumerate(data)
        made = [(key, _value(arguments[-1], value, f"{where}.{key}")) for key, value in many]
        return dict(made) if origin is dict else [value for _, value in made]
    return float(data) if kind is float else data


def _member(kinds: Sequence[Any], data: Any) -> Any:
    """Which of a union's types `data` was written from: the dataclass that knows all of its fields, and of several the one that has
    fewest others (an earlier version may have written it, before a field came to be); else the plain one."""
    if isinstance(data, dict):
        fields = {kind: {f.name for f in dataclasses.fields(kind)} for kind in kinds if dataclasses.is_dataclass(kind)}
        knowing = [kind for kind, names in fields.items() if data.keys() <= names]
        if knowing:
            return min(knowing, key=lambda kind: len(fields[kind]))
    tuples = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    return tuples[0] if isinstance(data, list) and tuples else type(data)
