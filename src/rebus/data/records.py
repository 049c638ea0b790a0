"""Records: one JSON object a line, with pictures and named texts, before anybody has decided how they are worded.

A record's `images` are paths relative to the file, data URLs, or lists of codes that a tokenizer wrote ahead of time
(then `codes_of` names that tokenizer). Everything else in it is for the template that makes a Document of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.lines import Lines, Unreadable
from rebus.data.sources import open_url
from rebus.document import Document, Image
from rebus.errors import RebusError
from rebus.visual import Codes


@dataclass(frozen=True)
class Record:
    """Pictures and texts that belong together."""

    images: tuple[Image, ...]
    """The pictures, in order."""
    fields: Mapping[str, Any]
    """Everything else of the JSON object."""

    def text(self, name: str) -> str:
        """A text without the spaces around it. Raises Unreadable when there is none of this name."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise Unreadable(
                f"A record has {', '.join(self.fields) or 'no texts'}, but no text {name!r}. It is skipped."
            )
        return value.strip()

    def pictures(self, count: int) -> tuple[Image, ...]:
        """The pictures. Raises Unreadable when there are fewer than `count`."""
        if len(self.images) < count:
            raise Unreadable(f"A record needs {count} images here, but has {len(self.images)}. It is skipped.")
        return self.images


Template = Callable[[Record, Random], Document]
"""How a record is worded; what is chosen at random is drawn from the generator."""


class Records:
    """The records of a file of JSON lines. One that cannot be read, or that `keep` refuses, raises Unreadable."""

    def __init__(self, path: Path, keep: Keep = KEEP_ALL) -> None:
        self.lines, self.keep = Lines(path), keep

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Record:
        path, name = self.lines.path, f"{self.lines.path}, record {index + 1}"
        try:
            data = json.loads(self.lines[index])
        except ValueError as error:
            raise Unreadable(f"{name} is not JSON: {error}. It is skipped.") from None
        if not isinstance(data, dict) or not isinstance(data.get("images", []), list):
            raise Unreadable(f"{name} is no object whose `images` are a list. It is skipped.")
        source = str(data.pop("codes_of", ""))
        images = tuple(open_picture(item, path.parent, source, name) for item in data.pop("images", []))
        self.keep.check(images, name, data.get("similarity"))
        return Record(images, data)


def open_picture(item: Any, folder: Path, source: str, name: str) -> Image:
    """The image that a JSON value stands for: a list of codes, a data URL, or a path under `folder`. Raises Unreadable."""
    if isinstance(item, list):
        if not item or not all(type(code) is int and code >= 0 for code in item):
            raise Unreadable(f"{name} has an image whose codes are not whole numbers from 0 on. It is skipped.")
        codes = Codes(torch.tensor(item), source)
        return Image(understood=codes, generated=codes)
    if not isinstance(item, str):
        raise Unreadable(f"{name} has an image that is neither a path nor a list of codes: {item!r}. It is skipped.")
    try:
        return Image(open_url(item, folder))
    except RebusError as error:
        raise Unreadable(f"{name}: {error}") from None


def pair(document: Document) -> Record | None:
    """The record, with a `text`, of a Document that is nothing but pictures and then a text; none of any other."""
    match document.messages:
        case (shown, said) if not shown.text and shown.images and said.text and not said.images:
            return Record(tuple(shown.images), {"text": said.text})
    return None
