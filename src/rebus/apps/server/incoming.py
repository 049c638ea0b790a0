"""Pictures and conversations of requests, turned into what the library knows. Nothing here opens a file."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from typing import Any

import PIL.Image

from rebus.apps.server.errors import ApiError, refusal
from rebus.apps.server.fetch import Allowed, fetch, is_public
from rebus.apps.server.settings import ServerConfig
from rebus.document import Document, from_json
from rebus.errors import RebusError
from rebus.images import decode_image


class Pictures:
    """The pictures of one request, counted against its limits."""

    def __init__(self, config: ServerConfig, allowed: Allowed = is_public) -> None:
        self._config, self._allowed = config, allowed
        self._count = 0
        self._pixels = 0

    async def at(self, url: str, name: str) -> PIL.Image.Image:
        """The picture that an URL is or names; errors call it `name`. Raises ApiError."""
        if url.startswith("data:"):
            return await self.of(_bytes_of(url, name), name)
        if not url.startswith(("http://", "https://")):
            raise ApiError(
                400,
                f"{name} is neither a data URL nor an http address, so there is no picture. "
                "Send it as data:image/png;base64,…",
                code="invalid_image_url",
            )
        config = self._config
        if not config.fetch:
            raise ApiError(
                400,
                f"{name} is an address on the network, from which this server fetches nothing. Send it as a data URL.",
                code="invalid_image_url",
            )
        data = await fetch(url, most_bytes=config.fetch_bytes, seconds=config.fetch_seconds, allowed=self._allowed)
        return await self.of(data, name)

    async def of(self, data: bytes, name: str) -> PIL.Image.Image:
        """The picture in the bytes of a file. Raises ApiError."""
        config = self._config
        self._count += 1
        if self._count > config.images:
            raise ApiError(
                400,
                f"The request has more than the {config.images} pictures that one may have. Leave some out.",
                code="too_many_images",
            )
        room = config.pixels - self._pixels
        try:
            picture = await asyncio.to_thread(decode_image, data, name=name, max_pixels=room)
        except RebusError as error:
            raise refusal(error) from None
        self._pixels += picture.width * picture.height
        return picture


def _bytes_of(url: str, name: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it is not in base64")
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400,
            f"{name} is a broken data URL ({error}). Write it as data:image/png;base64,…",
            code="invalid_image_url",
        ) from None


def bytes_of_base64(text: str, name: str) -> bytes:
    """The bytes of a picture in base64, with or without `data:` before it. Raises ApiError."""
    return _bytes_of(text if text.startswith("data:") else f"data:;base64,{text}", name)


async def document_of(messages: Sequence[dict[str, Any]], pictures: Pictures, config: ServerConfig) -> Document:
    """Messages in the chat-message form → a Document. Raises ApiError for what cannot be one, naming the message."""
    opened: dict[str, PIL.Image.Image] = {}
    letters = 0
    for number, message in enumerate(messages, 1):
        content = message["content"]
        for place, part in enumerate([] if isinstance(content, str) else content, 1):
            letters += len(part.get("text", ""))
            if part["type"] == "image_url":
                key = f"{number}.{place}"
                opened[key] = await pictures.at(part["image_url"]["url"], f"Picture {place} of message {number}")
                part["image_url"] = {"url": key}
        letters += len(content) if isinstance(content, str) else 0
    # hardly a word is that long: what is longer need not be cut into words to see that it does not fit
    if letters > 64 * config.context:
        raise ApiError(
            400,
            f"The request has {letters:,} letters, which is more than {config.context:,} words hold. Shorten it.",
            code="context_length_exceeded",
            param="messages",
        )
    if not messages or messages[-1]["role"] != "user":
        raise ApiError(
            400,
            "The last message is not a user's, so there is nothing to answer. End with a message of role user.",
            code="invalid_value",
            param="messages",
        )
    try:
        return from_json({"messages": list(messages)}, opened.__getitem__)
    except RebusError as error:
        raise refusal(error, param="messages") from None
