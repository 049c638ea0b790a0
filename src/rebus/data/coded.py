"""A set of documents with its images as codes, written once and read many times (`open_source` reads it back).

A line is a document of chat messages whose images are `image_codes` parts: training on it needs no vision encoder.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rebus.data.lines import Unreadable
from rebus.document import Document, Image, Part, to_json, user
from rebus.errors import RebusError
from rebus.visual import Codes, VisualTokenizer


class Many(Protocol):
    """Documents addressed by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Document: ...


def write_coded(documents: Many, tokenizer: VisualTokenizer, path: Path, *, batch: int = 64) -> tuple[int, int]:
    """Writes `path` (.jsonl), whole or not at all; returns how many documents were written, and how many could not be
    read. Raises RebusError for a tokenizer that does not make codes, and for a path that cannot be written."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    written = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for group in _groups(documents, batch):
                for document in _coded(group, tokenizer):
                    file.write(json.dumps(_json(document), ensure_ascii=False) + "\n")
                    written += 1
        part.replace(path)
    except OSError as error:
        raise RebusError(f"{path} cannot be written: {error.strerror or error}. Choose another folder.") from None
    finally:
        part.unlink(missing_ok=True)
    return written, len(documents) - written


def _groups(documents: Many, batch: int) -> Iterator[list[Document]]:
    group: list[Document] = []
    for index in range(len(documents)):
        try:
            group.append(documents[index])
        except Unreadable:
            continue
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _coded(group: list[Document], tokenizer: VisualTokenizer) -> list[Document]:
    images = [image for document in group for image in document.images]
    encoded = iter(tokenizer.encode(images, {"generation"}) if images else [])
    return [document.map_images(lambda image, role: next(encoded)) for document in group]


def _json(document: Document) -> dict[str, Any]:
    return {"messages": [{"role": m.role, "content": [_part(part) for part in m.content]} for m in document.messages]}


def _part(part: Part) -> dict[str, Any]:
    if not isinstance(part, Image):
        return to_json(Document((user(part),)))["messages"][0]["content"][0]
    codes = part.generated
    if not isinstance(codes, Codes):
        raise RebusError(
            f"Images are written as codes, but this tokenizer makes {type(codes).__name__}. Use one that makes codes."
        )
    return {"type": "image_codes", "source": codes.source, "codes": codes.ids_N.tolist()}
