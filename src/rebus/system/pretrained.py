"""The hub's conventions: a system saved as one folder that stands alone, and a folder or hub id in the place of a name.

What is saved is what the system holds, not what it was loaded from: adapters are folded in, shared parts are written
out. The folder has `system.json`, safetensors, the text tokenizer and a model card; uploading it is all that publishing
takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rebus.checkpoint import SavedSystem, config_to_json, load_system, save_system
from rebus.checkpoint.hub import HubFolder, hub_folder
from rebus.checkpoint.saved import FILE
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import tokenizer_files
from rebus.system.card import model_card

if TYPE_CHECKING:
    from rebus.system.parts import System

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
HUB_FILES = (FILE, "*.safetensors", "tokenizer.json", "tokenizer.model", "README.md")
"""What is fetched of a repository: no pickles, no code."""


@dataclass(frozen=True)
class Portable:
    """What a paper says of a system that is to stand alone."""

    config: Any
    """The config that describes it, without shared weights and with a whole language model."""
    parts: Mapping[str, Mapping[str, Tensor]]
    """Tensors of each part."""
    others: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Further files of a part."""


def text_files(system: System) -> dict[str, bytes]:
    """The files of the system's text tokenizer; none for one that reads bytes."""
    return tokenizer_files(system.grammar.text)


def save_pretrained(
    system: System,
    folder: str | os.PathLike[str],
    portable: Callable[[System], Portable],
    about: str,
    *,
    report: str | os.PathLike[str] | None = None,
    licence: str = "other",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> SavedSystem:
    """Writes `folder`, whole or not at all; see `System.save_pretrained`. `portable` and `about`, the docstring, are
    the paper's."""
    if system.tokenizer is None or system.lm.llm.device.type == "meta":
        raise RebusError(
            f"{system.name} was loaded without its tokenizer or its language model, and a system that is saved has both. "
            "Load it with all parts."
        )
    made = portable(system)
    parts = {name: tensors for name, tensors in made.parts.items() if tensors}
    saved = SavedSystem(
        name=system.name, config=config_to_json(made.config), source=f"saved from {system.name} by save_pretrained"
    )
    counts = {name: sum(x.numel() for x in tensors.values()) for name, tensors in parts.items()}
    card, pictures = model_card(system.name, about, counts, None if report is None else Path(report), licence)
    loose = {"README.md": card.encode(), **pictures}
    return save_system(folder, saved, parts, others=made.others, loose=loose, dtype=dtype, overwrite=overwrite)


def located(name: str | os.PathLike[str], papers: list[str], revision: str | None = None) -> SavedSystem | None:
    """The saved system that a folder or a hub id names, fetched where it is not there yet; None for a plain name.

    The folder's own word decides which of `papers`, those of this library, it is; it never decides what is imported.
    Raises RebusError for a folder that holds no system, and for one of a paper that is not of this library.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    plain = isinstance(name, str) and (not text or ":" in text or text in papers or not ("/" in text or path.is_dir()))
    if plain and os.sep not in text:
        return None
    if path.is_dir():
        saved = load_system(path)
    elif isinstance(name, str) and HUB_ID.fullmatch(text):
        saved = load_system(hub_folder(HubFolder(text, revision=revision or "main", files=HUB_FILES)))
    else:
        raise RebusError(
            f"There is no folder {text}, and it is no id of the hub (owner/name) either. Name a folder that "
            "`rebus pack`, `rebus convert` or `save_pretrained` wrote, or a model of `rebus list`."
        )
    paper = saved.name.partition(":")[0]
    if paper not in papers:
        raise RebusError(
            f"{text} holds weights of {saved.name!r}, and the papers of this library are {', '.join(papers)}. A folder "
            f"does not decide what is imported: for a package of your own, name it and give the folder as `weights`."
        )
    return saved
