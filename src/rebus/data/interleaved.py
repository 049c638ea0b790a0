"""Web pages of text and images as Documents: JSON lines in the form of MMC4 or of OBELICS.

    OBELICS   {"texts": ["A cat.", null], "images": [null, "cat.jpg"]}      one of the two at every place
    MMC4      {"text_list": ["A cat.", "It sleeps."],
               "image_info": [{"image_name": "cat.jpg", "matched_text_index": 0, "matched_sim": 0.3}]}

Images are paths relative to the file, data URLs, or lists of codes (`codes_of` names their tokenizer). A page is one
message of the assistant: all of it is to be learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.lines import Lines, Unreadable
from rebus.data.records import open_picture
from rebus.document import Document, Image, Message, Part, assistant


class Pages:
    """The pages of a file. Images that cannot be read, or that `keep` refuses, are left out; a page that has nothing left
    raises Unreadable."""

    def __init__(self, path: Path, keep: Keep = KEEP_ALL) -> None:
        self.lines, self.keep = Lines(path), keep

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Document:
        name = f"{self.lines.path}, page {index + 1}"
        try:
            data = json.loads(self.lines[index])
        except ValueError as error:
            raise Unreadable(f"{name} is not JSON: {error}. It is skipped.") from None
        entries = _entries(data, name)
        source = str(data.get("codes_of", ""))
        parts: list[Part] = []
        for item, similarity in entries:
            if isinstance(item, _Text):
                parts.append(item.text)
                continue
            try:
                image = open_picture(item, self.lines.path.parent, source, name)
                self.keep.check([image], name, similarity)
            except Unreadable:
                continue
            parts.append(image)
        if not parts:
            raise Unreadable(f"{name} has {len(entries)} entries, none of which can be read. It is skipped.")
        return Document((assistant(*parts),))


class _Text:
    def __init__(self, text: str) -> None:
        self.text = text


def _entries(data: Any, name: str) -> list[tuple[Any, object]]:
    """Texts and what stands for images, in reading order, each with its similarity where it says one."""
    match data:
        case {"texts": [*texts], "images": [*images]} if len(texts) == len(images):
            both = zip(texts, images, strict=True)
            return [(_Text(text) if isinstance(text, str) else image, None) for text, image in both if text or image]
        case {"text_list": [*texts], "image_info": [*infos]}:
            before: dict[int, list[tuple[Any, object]]] = {}
            for info in infos:
                if isinstance(info, dict) and isinstance(at := info.get("matched_text_index"), int):
                    item = info.get("image_name", info.get("codes"))
                    before.setdefault(at, []).append((item, info.get("matched_sim")))
            found: list[tuple[Any, object]] = []
            for number, text in enumerate(texts):
                found += [*before.get(number, []), (_Text(str(text)), None)]
            return found
    raise Unreadable(f"{name} has neither `texts` and `images` of one length nor `text_list` and `image_info`.")


def rearrange(document: Document, rng: Random, *, images: int | None = None, swap: float = 0.0) -> Document:
    """A page with at most `images` images, cut before the first one too many; with probability `swap` every image changes
    places with the part after it (SEED-LLaMA's MMC4), so that the text comes before what it speaks of."""
    messages = []
    for message in document.messages:
        parts = _at_most(message.content, images)
        if swap and rng.random() < swap:
            parts = _swapped(parts)
        messages.append(Message(message.role, tuple(parts)))
    return Document(tuple(messages))


def _at_most(parts: Sequence[Part], images: int | None) -> list[Part]:
    found = [at for at, part in enumerate(parts) if isinstance(part, Image)]
    return list(parts if images is None or len(found) <= images else parts[: found[images]])


def _swapped(parts: Sequence[Part]) -> list[Part]:
    parts, at = list(parts), 0
    while at < len(parts) - 1:
        if isinstance(parts[at], Image):
            parts[at], parts[at + 1] = parts[at + 1], parts[at]
            at += 1
        at += 1
    return parts
