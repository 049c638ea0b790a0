"""A set of training data as it lies on a disk: documents, records or pages, whatever its files hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.interleaved import Pages
from rebus.data.lines import Lines
from rebus.data.records import Record, Records
from rebus.data.sources import Joined, open_source
from rebus.document import Document
from rebus.errors import RebusError


class Items(Protocol):
    """Documents and records addressed by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Document | Record: ...


def open_set(path: Path | str, keep: Keep = KEEP_ALL) -> Items:
    """What lies at `path`: a file, or all files of a folder by name. Tar shards and tables give documents; JSON lines are
    told apart by their first: chat messages, pages, or records. Raises RebusError if there is nothing to read."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".tar", ".parquet"))
        if not inside:
            raise RebusError(f"The folder {path} holds no .jsonl, .tar or .parquet file. Name the folder of the data.")
        parts: list[Any] = [open_set(file, keep) for file in inside]
        return Joined(parts)
    if path.suffix != ".jsonl":
        return open_source(path, "caption", keep)
    lines = Lines(path)
    try:
        first = json.loads(lines[0]) if len(lines) else None
    except ValueError:
        first = None
    if not isinstance(first, dict):
        raise RebusError(f"{path} does not begin with a JSON object, so what it holds is unknown. Check the file.")
    if "messages" in first:
        return open_source(path, "caption", keep)
    return Pages(path, keep) if {"text_list", "texts"} & first.keys() else Records(path, keep)
