"""Files that the apps write and read: conversations, as JSON or as a web page, and images as codes."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import PIL.Image
import torch

from rebus.apps.conversation import Conversation, conversation_from_json, conversation_json
from rebus.apps.memory import read_drawing
from rebus.apps.page import render
from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import decode_image, open_image
from rebus.visual import Codes


def write_whole(path: Path, text: str) -> Path:
    """Writes a text file whole or not at all, making its folder. Raises RebusError where that cannot be done."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise RebusError(f"{path} cannot be written: {error.strerror or error}. Choose another folder.") from None
    return path


def numbered(file: Path, count: int) -> list[Path]:
    """The names of `count` files: the name itself, or the name with numbers from 1 where there are several."""
    return [file] if count == 1 else [file.with_stem(f"{file.stem}-{n}") for n in range(1, count + 1)]


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises RebusError naming the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RebusError(f"There is no file {path}. Check the path.") from None
    except json.JSONDecodeError as error:
        raise RebusError(f"{path} is not JSON: line {error.lineno}, {error.msg}. Write it again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RebusError(f"{path} cannot be read as text: {error}. Give a JSON file.") from None


# ------------------------------------------------------------------------------------------------ conversations


MAX_FILE = 256_000_000
"""The largest conversation that is opened, in bytes."""


def save_conversation(conversation: Conversation, path: Path) -> Path:
    """Writes a conversation: `.html` as a page to look at, `.json` to be opened again, in the chat-message form with its
    branches and with pictures that remember."""
    match path.suffix.lower():
        case ".html":
            return write_whole(path, render([conversation.document]))
        case ".json":
            data = conversation_json(conversation)
            return write_whole(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    raise RebusError(f"{path} ends in neither .json nor .html, so its form is unknown. End it in one of them.")


def open_conversation(path: Path, system: Any) -> tuple[Conversation, list[str]]:
    """A conversation that `save_conversation` wrote as JSON, its pictures with the tokens that `system` can use; and notices
    for the user about those that remember something else. Pictures must lie inside the file: one that comes from others
    opens nothing of this machine. Raises RebusError for a file that is too large or is no conversation."""
    notices: list[str] = []

    def open_image(url: str) -> Image:
        if not url.startswith("data:"):
            raise RebusError(
                f"A picture of {path} lies elsewhere, at {url!r:.80}, where nothing is opened. Save it again."
            )
        image, notice = read_drawing(_data_of(url), system, name="a picture of the conversation")
        notices.extend([notice] if notice and notice not in notices else [])
        return image

    if path.is_file() and path.stat().st_size > MAX_FILE:
        raise RebusError(f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_FILE:,} that are opened.")
    try:
        return conversation_from_json(read_json(path), open_image), notices
    except (ValueError, TypeError) as error:
        raise RebusError(f"{path} is no conversation that can be opened: {error}") from None


def image_at(url: str) -> PIL.Image.Image:
    """The picture behind the URL of a document's image part: a data URL or a local path; nothing is downloaded."""
    if re.match(r"https?://", url):
        raise RebusError(f"{url} is on the network, where nothing is opened. Download the picture first.")
    if not url.startswith("data:"):
        return open_image(url.removeprefix("file://"))
    return decode_image(_data_of(url), name="a data URL of the document")


def _data_of(url: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise RebusError(f"A data URL of the document is broken ({error}). Write the document again.") from None


# ------------------------------------------------------------------------------------------------ codes


def save_codes(images: Sequence[Image], path: Path) -> Path:
    """Writes images as a Document whose image parts hold codes and no pixels: `{"type": "image_codes", …}`."""
    return write_whole(path, json.dumps({"messages": [{"role": "assistant", "content": codes_json(images)}]}) + "\n")


def codes_json(images: Sequence[Image]) -> list[dict[str, Any]]:
    """One part per image. Raises RebusError for images that became vectors: only codes can be written as text."""
    parts = []
    for number, image in enumerate(images, 1):
        tokens = image.generated
        if not isinstance(tokens, Codes):
            kind = type(tokens).__name__.lower() if tokens is not None else "nothing"
            raise RebusError(f"Image {number} became {kind}, and only codes can be written down. Use another system.")
        parts.append({"type": "image_codes", "source": tokens.source, "codes": tokens.ids_N.tolist()})
    return parts


def read_codes(text_or_path: str) -> list[Codes]:
    """Codes from a file that `save_codes` wrote, or from the numbers themselves (whose source is then `""`).

    Raises RebusError when there are none or a part is malformed.
    """
    if re.fullmatch(r"\d+([\s,]+\d+)*", text_or_path.strip()):
        return [Codes(torch.tensor([int(number) for number in re.findall(r"\d+", text_or_path)]), source="")]
    path = Path(text_or_path)
    found = []
    for part in _parts_of(read_json(path)):
        match part:
            case {"type": "image_codes", "source": str(source), "codes": [*codes]}:
                if not codes or not all(type(code) is int and 0 <= code < 2**63 for code in codes):
                    raise RebusError(f"{path} has an image whose codes are not whole numbers. Tokenize it again.")
                found.append(Codes(torch.tensor(codes), source))
            case {"type": "image_codes"}:
                raise RebusError(f"{path} has an image_codes part without source or codes. Tokenize it again.")
    if not found:
        raise RebusError(f"{path} holds no images as codes. Write one with `rebus tokenize SYSTEM IMAGE -o FILE`.")
    return found


def _parts_of(data: Any) -> list[Any]:
    messages = data.get("messages") if isinstance(data, dict) else None
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    return [part for content in contents if isinstance(content, list) for part in content]
