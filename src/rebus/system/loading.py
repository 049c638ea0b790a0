"""Loading a system by its name: the folders under `papers/` are the registry.

A paper's package has `VARIANTS` (name → config) and `build(config, weights, parts, device, dtype) -> System`; where it
has official behaviour to switch on, `official(config)`; where it has adapters, `adapt(system, adapter) -> System` and
`adapters(config, weights) -> names`. Its module `portable`, if it has one, says how a system is saved to stand alone, and
how large one is.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rebus.checkpoint import config_from_json, load_system
from rebus.errors import RebusError
from rebus.nn.text_model import quantize_int8
from rebus.packages import embedded
from rebus.system.parts import System
from rebus.system.pretrained import located

PARTS = ("tokenizer", "lm", "detokenizer")
PAPERS = Path(__file__).parents[1] / "papers"


def known_systems() -> dict[str, list[str]]:
    """The papers of this library and their variants, as `load` takes them: `{"seed": ["8b", "mini", …], …}`."""
    return {paper: list(_paper(paper).VARIANTS) for paper in _papers()}


def load(
    name: str | os.PathLike[str],
    *,
    weights: Path | str | None = None,
    revision: str | None = None,
    adapter: Path | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    parts: Sequence[str] = PARTS,
    official: bool = False,
) -> System:
    """A system by name: `"seed:mini"`, or `"mylab.emu:tiny"` for a package of one's own; or a folder that holds one, or the
    hub id of such a folder (`"owner/name"`, fetched once; `revision` is its branch, tag or commit).

    `weights` is a folder written by `rebus convert` or by training; its config is read from it. Without it a variant
    that has embedded weights takes those. `adapter` is a speciality that the paper tunes its model for, as a folder or the
    name of one beside the weights; `System.with_adapter` gives further ones on the same base. `parts` leaves out what is
    not needed. `official` switches every deviation of the paper's published code on. `device` is the CPU unless given, `dtype` that of the weights; `torch.int8` holds the
    language model's weights in eight bits and everything else as it is. What is loaded is for use: LoRA is folded into
    the language model's weights. Training starts from the stages' own builders.

    Raises RebusError for an unknown name or part, weights of another paper or variant, and all that building raises.
    """
    found = located(name, _papers(), revision)
    if found is not None:
        if weights is not None:
            raise RebusError(
                f"{os.fspath(name)} holds weights of its own, but `weights` names {weights} as well. Give one of the two."
            )
        name, weights = found.name, found.folder
    paper_name, _, variant = os.fspath(name).partition(":")
    paper = _paper(paper_name)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise RebusError(
            f"A system has the parts {', '.join(PARTS)}, but {unknown[0]!r} was asked for. Choose of these."
        )
    config, variant = _config(paper, paper_name, variant, weights)
    if official:
        config = _ability(paper, paper_name, "official", "has no official behaviour to switch on")(config)
    folder = None if weights is None else Path(weights)
    number = None if dtype is torch.int8 else dtype
    system: System = paper.build(config, folder, tuple(parts), torch.device(device or "cpu"), number)
    if "lm" in parts:
        system.lm.llm.fold_lora()
        if dtype is torch.int8:
            quantize_int8(system.lm.llm)
    system.name, system.config = f"{paper_name}:{variant}", config
    system.weights = _weights_hash(folder, getattr(config, "weights", None))
    return system if adapter is None else adapted(system, adapter)


def adapted(system: System, adapter: Path | str) -> System:
    """See `System.with_adapter`."""
    name = system.name.partition(":")[0]
    return _ability(_paper(name), name, "adapt", "has no adapters")(system, adapter)


def known_adapters(name: str, weights: Path | str | None = None) -> list[str]:
    """Names of the adapters beside the weights of a system, which `load` takes as `adapter`. Raises RebusError as `load`
    does for an unknown name."""
    paper_name, _, variant = name.partition(":")
    paper = _paper(paper_name)
    if not hasattr(paper, "adapters"):
        return []
    return paper.adapters(_config(paper, paper_name, variant, weights)[0], None if weights is None else Path(weights))


def papers_config(name: str) -> tuple[ModuleType, Any, str]:
    """The package, the config and the variant that a plain name means. Raises RebusError for an unknown one."""
    paper_name, _, variant = name.partition(":")
    paper = _paper(paper_name)
    config, variant = _config(paper, paper_name, variant, None)
    return paper, config, variant


def paper_module(name: str, module: str, lacking: str) -> tuple[ModuleType, ModuleType]:
    """The package of the system `name`, and its module `module`. Raises RebusError where it has none: `name` `lacking`."""
    paper = _paper(name.partition(":")[0])
    dotted = f"{paper.__name__}.{module}"
    try:
        return paper, importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name != dotted:
            raise
        raise RebusError(f"{name} {lacking}: {paper.__name__} has no module {module!r}. Write one.") from None


def _weights_hash(folder: Path | None, name: str | None) -> str:
    """Sixteen digits that tell these weights and those that they are laid over from all others."""
    if folder is None and name is None:
        return "random"
    saved = load_system(folder or embedded(name or ""))
    layers = [layer for layer in (saved, saved.shared()) if layer is not None]
    digests = sorted(digest for layer in layers for files in layer.files.values() for digest in files.values())
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _papers() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules([str(PAPERS)]) if found.ispkg)


def _paper(name: str) -> ModuleType:
    """The package of a paper; a dotted name is imported as it stands."""
    dotted = name if "." in name else f"rebus.papers.{name}"
    try:
        paper = importlib.import_module(dotted) if name else None
    except ModuleNotFoundError as error:
        if not (error.name and f"{dotted}.".startswith(f"{error.name}.")):
            raise  # the paper is there, something that it needs is not
        paper = None
    if paper is None or not hasattr(paper, "VARIANTS"):
        raise RebusError(
            f"There is no system {name!r}. The papers here are {', '.join(_papers())}; a package of your own is named with its dots. "
            "Choose one with `rebus list`."
        )
    return paper


def _config(paper: ModuleType, paper_name: str, variant: str, weights: Path | str | None) -> tuple[Any, str]:
    """The config that was asked for, by variant or from the weights, and the variant's name."""
    variants: dict[str, Any] = paper.VARIANTS
    if variant and variant not in variants:
        raise RebusError(
            f"There is no system '{paper_name}:{variant}'. The variants of {paper_name} are {', '.join(variants)}. "
            "Choose one with `rebus list`."
        )
    if weights is None:
        variant = variant or next(iter(variants))
        return _as_embedded(variants[variant]), variant
    saved = load_system(weights)
    saved_paper, _, saved_variant = saved.name.partition(":")
    if saved_paper != paper_name or (variant and saved_variant != variant):
        asked = f"{paper_name}:{variant}" if variant else paper_name
        raise RebusError(
            f"The weights in {weights} are those of {saved.name}, but {asked} was asked for. "
            f"Load {saved.name}, or name other weights."
        )
    return config_from_json(type(next(iter(variants.values()))), saved.config), saved_variant


def _as_embedded(config: Any) -> Any:
    """The config that a variant's embedded weights were trained with, where there are such: what the stages would train today may
    be another."""
    name = getattr(config, "weights", None)
    try:
        saved = load_system(embedded(name)) if name else None
    except RebusError:
        return config  # they are not there, as building it will say
    return config if saved is None else config_from_json(type(config), saved.config)


def _ability(paper: ModuleType, paper_name: str, function: str, lacking: str) -> Any:
    if not hasattr(paper, function):
        raise RebusError(f"{paper_name} {lacking}. Load it without `{'adapter' if function == 'adapt' else function}`.")
    return getattr(paper, function)
