"""Documents of text and images: what people write and what models answer.

A caption pair, a question, an edit, a story and a chat are all Documents. The JSON form is the chat-message format
that people already know: messages with a role and content parts of type `text`, `image_url` or `box`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import PIL.Image
import torch

from rebus.errors import RebusError
from rebus.visual import Codes, Drawn, VisualTokens

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Shown:
    """What data says a picture shows."""

    name: str
    style: str


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a document: pixels, tokens, or both; at least one of the three is there.

    `understood` is how a model reads it, `generated` how a model writes it; both are known when the image was encoded
    ahead of time, `generated` also when a model has just written it; `drawn` says how pixels came from `generated`, and
    `shows` what they show, where data that is learned from says so.
    """

    pixels: PIL.Image.Image | None = None
    understood: VisualTokens | None = None
    generated: VisualTokens | None = None
    drawn: Drawn | None = None
    shows: Shown | None = None

    def __post_init__(self) -> None:
        if self.pixels is None and self.understood is None and self.generated is None:
            raise RebusError("An image needs pixels or tokens, but this one has neither. Give `pixels=` a PIL image.")

    def with_tokens(self, *, understood: VisualTokens | None = None, generated: VisualTokens | None = None) -> Image:
        """The same image with `understood` and/or `generated` filled in; what is not given stays."""
        return replace(self, understood=understood or self.understood, generated=generated or self.generated)


@dataclass(frozen=True)
class Box:
    """A grounded region of the image before it: centre x, centre y, width, height as fractions of its sides (0..1)."""

    cx: float
    cy: float
    w: float
    h: float

    def __post_init__(self) -> None:
        values = (self.cx, self.cy, self.w, self.h)
        if not all(0.0 <= v <= 1.0 for v in values):
            raise RebusError(
                f"A box holds fractions of the image's sides between 0 and 1, but this one is {values}. "
                "Divide pixel coordinates by the image's width and height."
            )


Part = str | Image | Box


@dataclass(frozen=True)
class Message:
    """What one speaker says in one turn: text, images and boxes in reading order."""

    role: Role
    content: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant"):
            raise RebusError(f"A message's role is system, user or assistant, but this one is {self.role!r}.")
        if isinstance(self.content, str | Image | Box):
            object.__setattr__(self, "content", (self.content,))
        object.__setattr__(self, "content", tuple(self.content))

    @property
    def text(self) -> str:
        """All text of the message, joined."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def images(self) -> list[Image]:
        """The images of the message, in order."""
        return [part for part in self.content if isinstance(part, Image)]


def user(*parts: Part) -> Message:
    """A user's message: `user(image, "What is this?")`."""
    return Message("user", parts)


def assistant(*parts: Part) -> Message:
    """An assistant's message: `assistant("Here it is.", image)`."""
    return Message("assistant", parts)


@dataclass(frozen=True)
class Document:
    """Messages in order. Documents are values: `add` returns a longer one."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))

    def add(self, *messages: Message) -> Document:
        """The document with `messages` at its end."""
        return Document(self.messages + messages)

    @property
    def images(self) -> list[Image]:
        """All images, in reading order."""
        return [image for message in self.messages for image in message.images]

    def map_images(self, change: Callable[[Image, Role], Image]) -> Document:
        """The document with every image replaced by `change(image, role of its message)`."""
        return Document(
            tuple(
                Message(m.role, tuple(change(p, m.role) if isinstance(p, Image) else p for p in m.content))
                for m in self.messages
            )
        )


# ---------------------------------------------------------------------------------------------- the JSON form


def plain_png(image: Image) -> bytes:
    """An image's pixels as a PNG file. Raises RebusError where there are none."""
    if image.pixels is None:
        raise RebusError("An image that has tokens and no pixels has no JSON form. Detokenize it first.")
    buffer = io.BytesIO()
    image.pixels.save(buffer, format="PNG")
    return buffer.getvalue()


def to_json(document: Document, png: Callable[[Image], bytes] = plain_png) -> dict[str, Any]:
    """The chat-message form: `{"messages": [{"role", "content": [{"type": "text" | "image_url" | "box", …}]}]}`.

    Images are written as data URLs of what `png` makes of them; unless that writes tokens, they are not written. Raises
    RebusError for an image without pixels.
    """
    return {
        "messages": [{"role": m.role, "content": [_part_to_json(p, png) for p in m.content]} for m in document.messages]
    }


def _part_to_json(part: Part, png: Callable[[Image], bytes]) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case Box():
            return {"type": "box", "box": [part.cx, part.cy, part.w, part.h]}
        case Image():
            url = "data:image/png;base64," + base64.b64encode(png(part)).decode()
            return {"type": "image_url", "image_url": {"url": url}}


OpenImage = Callable[[str], PIL.Image.Image | Image]
"""Turns the URL of an image part into pixels, or into an image that knows its tokens."""


def from_json(data: dict[str, Any], open_image: OpenImage) -> Document:
    """The inverse of `to_json`; `open_image(url)` opens what the URL of an image part names (and decides what it
    is allowed to open). Content may also be a plain string, and an image codes of a tokenizer, which serve both
    readings. Raises RebusError naming the message that is malformed."""
    if not isinstance(data, dict) or not isinstance(data.get("messages"), list):
        raise RebusError('A document is an object {"messages": [...]}, but this one has no list of messages.')
    messages = []
    for number, message in enumerate(data["messages"], 1):
        if not isinstance(message, dict) or "role" not in message:
            raise RebusError(f"Message {number} is not an object with a role and content.")
        content = message.get("content") or []
        parts = [content] if isinstance(content, str) else [_part_from_json(p, number, open_image) for p in content]
        messages.append(Message(message["role"], tuple(parts)))
    return Document(tuple(messages))


def _part_from_json(part: Any, number: int, open_image: OpenImage) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "image_url", "image_url": str(url)}:
            opened = open_image(url)
            return opened if isinstance(opened, Image) else Image(opened)
        case {"type": "image_codes", "source": str(source), "codes": [*ids]} if ids and all(
            type(code) is int and 0 <= code < 2**63 for code in ids
        ):
            codes = Codes(torch.tensor(ids), source)
            return Image(understood=codes, generated=codes)
        case {"type": "box", "box": [cx, cy, w, h]}:
            return Box(float(cx), float(cy), float(w), float(h))
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RebusError(
        f"Message {number} has a content part of type {kind!r} that could not be read. "
        "Parts are {type: text, text}, {type: image_url, image_url: {url}}, {type: image_codes, source, codes} or "
        "{type: box, box: [cx, cy, w, h]}."
    )
