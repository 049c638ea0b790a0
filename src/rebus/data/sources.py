"""Files of others as Documents: JSON lines of chat messages, tar shards of images and texts, Parquet tables.

Every source is addressed by index. A member that cannot be read raises `Unreadable` when it is asked for; mixtures and
loaders skip it and count it, so that one broken picture does not end a run.
"""

from __future__ import annotations

import base64
import json
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol

import PIL.Image

from rebus.data.filters import KEEP_ALL, Keep
from rebus.data.lines import Lines, Unreadable, opened
from rebus.data.parquet import column_names, count_rows, open_table
from rebus.data.token_files import ENDING as TOKENS
from rebus.data.token_files import unpack
from rebus.document import Document, Image, assistant, from_json, user
from rebus.errors import RebusError
from rebus.images import decode_image, open_image

PICTURES = ("png", "jpg", "jpeg", "webp")
"""What the name of a picture ends in, in a tar shard."""
Order = Literal["caption", "draw", "both"]
"""What becomes of an image and its text: the image first, the text first, or by turns."""


class Documents(Protocol):
    """Documents addressed by index.

    A source with the attribute `endless = True` has a new document for every index, and its length only says what is
    called an epoch.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Document: ...


class JsonLines:
    """A file with one document of chat messages a line. Image URLs are data URLs, or paths relative to the file; images
    may also be codes that a tokenizer wrote ahead of time (`image_codes`)."""

    def __init__(self, path: Path, keep: Keep = KEEP_ALL) -> None:
        self.path, self.keep = path, keep
        self._lines = Lines(path)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        name = f"{self.path}, document {index + 1}"
        document = _document(_json(self._lines[index], name), lambda url: open_url(url, self.path.parent), name)
        self.keep.check(document.images, name)
        return document


class Tar:
    """A tar shard as webdataset writes it: the files of one sample share their name up to the first dot.

    A sample is a picture with a text (`.txt`, or `.json` with `caption` or `text`, and `similarity` where that is known),
    frames of a video (`0.jpg`, `1.jpg` …) with a text, or `.json` with chat messages whose image URLs are endings of the
    sample's files (`jpg`). A shard that breaks off gives the samples before the break.

    A picture may also be the file of its tokens (`jpg.safetensors`, as `rebus tokenize --shards` writes it).
    """

    def __init__(self, path: Path, order: Order = "both", keep: Keep = KEEP_ALL) -> None:
        self.path, self.order, self.keep = path, order, keep
        self.broken_off = False
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isfile():
                        key, ending = key_and_ending(member.name)
                        self._samples.setdefault(key, {})[ending] = (member.offset_data, member.size)
        except FileNotFoundError:
            raise RebusError(f"There is no file {path}. Check the path of the data.") from None
        except (tarfile.TarError, OSError) as error:
            self.broken_off = True
            if not self._samples:
                raise RebusError(
                    f"{path} is not a tar file that can be read: {error}. Unpack compressed ones."
                ) from None
        self._keys = list(self._samples)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Document:
        key = self._keys[index]
        name, endings = f"{self.path}, sample {key.strip('/')}", self._samples[key]
        pictures = sorted(
            (e for e in endings if e.removesuffix(f".{TOKENS}").split(".")[-1] in PICTURES), key=_in_order
        )
        similarity = None
        if "json" in endings:
            data = _json(self._read(key, "json"), name)
            if isinstance(data, dict) and "messages" in data:
                found = _document(data, lambda url: self._named(key, url), name)
                self.keep.check(found.images, name)
                return found
            text = str(data.get("caption") or data.get("text") or "") if isinstance(data, dict) else ""
            similarity = data.get("similarity") if isinstance(data, dict) else None
        else:
            text = self._read(key, "txt").decode("utf-8", "replace").strip() if "txt" in endings else ""
        if not pictures or not text:
            raise Unreadable(
                f"{name} has {', '.join(endings)}, but a sample needs a picture and a text. It is skipped."
            )
        images = [self._image(key, ending, name) for ending in pictures]
        self.keep.check(images, name, similarity)
        return _pair(images, text, self.order, index)

    def _named(self, key: str, url: str) -> Image:
        """The image that a message names by its ending, or whose tokens lie under that name."""
        ending = url if url in self._samples[key] or f"{url}.{TOKENS}" in self._samples[key] else url.split(".")[-1]
        tokens = f"{ending}.{TOKENS}"
        return self._image(key, tokens if tokens in self._samples[key] else ending, url)

    def _image(self, key: str, ending: str, name: str) -> Image:
        data = self._read(key, ending)
        return unpack(data, name) if ending.endswith(f".{TOKENS}") else _picture(data, name)

    def _read(self, key: str, ending: str) -> bytes:
        if ending not in self._samples[key]:
            raise Unreadable(f"{self.path}: {key} has no file .{ending}, which its messages name. It is skipped.")
        start, size = self._samples[key][ending]
        with opened(self.path) as file:
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise Unreadable(f"{self.path} ends within {key}.{ending}: {len(data)} of {size} bytes. It is skipped.")
        return data


class Parquet:
    """A Parquet table: a column `messages` (JSON text of chat messages), or an image column and a text column.

    Images are bytes, or `{"bytes": …}` as Hugging Face writes them. The table is held in memory from the first use on, so
    that any order is fast; data that is larger belongs into tar shards.
    """

    def __init__(
        self, path: Path, order: Order = "both", keep: Keep = KEEP_ALL, *, image: str = "image", text: str = "text"
    ) -> None:
        if not path.exists():
            raise RebusError(f"There is no file {path}. Check the path of the data.")
        self.path, self.order, self.keep, self.image, self.text = path, order, keep, image, text
        names = column_names(path)
        self._columns = ["messages"] if "messages" in names else [image, text]
        if missing := [column for column in self._columns if column not in names]:
            raise RebusError(
                f"{path} has the columns {', '.join(names)}, but not {', '.join(missing)}. "
                "Name the columns of images and texts, or write chat messages into a column `messages`."
            )
        self._count = count_rows(path)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _row(self) -> Callable[[int], dict[str, Any]]:
        return open_table(self.path, self._columns)

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self._row(index)
        name = f"{self.path}, row {index + 1}"
        if "messages" in row:
            messages = row["messages"]
            data = {"messages": messages} if isinstance(messages, list) else _json(messages or "", name)
            return _document(data if isinstance(data, dict) else {"messages": data}, _from_data_url, name)
        picture = row[self.image]["bytes"] if isinstance(row[self.image], dict) else row[self.image]
        if not isinstance(picture, bytes) or not row[self.text]:
            raise Unreadable(f"{name} has no picture or no text. It is skipped.")
        images = [_picture(picture, name)]
        self.keep.check(images, name)
        return _pair(images, str(row[self.text]), self.order, index)


class Joined:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self.parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Document:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


def open_source(path: Path | str, order: Order = "both", keep: Keep = KEEP_ALL) -> Documents:
    """The documents of a file (`.jsonl`, `.tar`, `.parquet`), or of all such files of a folder, by name. What `keep`
    refuses is unreadable.

    Raises RebusError if there are none.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".tar", ".parquet"))
        if not inside:
            raise RebusError(f"The folder {path} holds no .jsonl, .tar or .parquet file. Name the folder of the data.")
        return Joined([open_source(file, order, keep) for file in inside])
    match path.suffix:
        case ".jsonl":
            return JsonLines(path, keep)
        case ".tar":
            return Tar(path, order, keep)
        case ".parquet":
            return Parquet(path, order, keep)
    raise RebusError(
        f"{path} ends in {path.suffix or 'nothing'}, but data is read from .jsonl, .tar or .parquet files."
    )


# ---------------------------------------------------------------------------------------------- members


def key_and_ending(name: str) -> tuple[str, str]:
    """To which sample a file of a tar shard belongs, and as what: `a/0001.JPG` → `a/0001`, `jpg`."""
    folder, _, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}/{key}", ending.lower()


def _picture(data: bytes, name: str) -> Image:
    try:
        return Image(decode_image(data, name=name))
    except RebusError as error:
        raise Unreadable(str(error)) from None


def _pair(images: Sequence[Image], text: str, order: Order, index: int) -> Document:
    """Frames of a video are read and never written."""
    if len(images) > 1 or order == "caption" or (order == "both" and index % 2 == 0):
        return Document((user(*images), assistant(text)))
    return Document((user(text), assistant(*images)))


def _in_order(ending: str) -> tuple[int, str]:
    """Frames by their number, `2.jpg` before `10.jpg`."""
    number = ending.partition(".")[0]
    return int(number) if number.isdigit() else -1, ending


def _json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{name} is not JSON: {error}. It is skipped.") from None


def _document(data: dict[str, Any], open_picture: Callable[[str], PIL.Image.Image | Image], name: str) -> Document:
    try:
        document = from_json(data, open_picture)
    except RebusError as error:
        raise Unreadable(f"{name}: {error}") from None
    except (TypeError, ValueError) as error:  # numbers and lists where they do not belong
        raise Unreadable(f"{name} is malformed: {error}. It is skipped.") from None
    if not document.messages:
        raise Unreadable(f"{name} has no messages. It is skipped.")
    return document


def open_url(url: str, folder: Path) -> PIL.Image.Image:
    """The picture of a data URL, or of a path under `folder`. Raises RebusError where there is none."""
    return _from_data_url(url) if url.startswith("data:") else open_image(folder / url)


def _from_data_url(url: str) -> PIL.Image.Image:
    head, _, body = url.partition(",")
    if not head.startswith("data:") or ";base64" not in head:
        raise Unreadable(f"{url[:40]!r} is not a data URL, which images inside a table must be. It is skipped.")
    try:
        return decode_image(base64.b64decode(body, validate=True), name="the image of a data URL")
    except ValueError as error:  # binascii's error, and RebusError
        raise Unreadable(f"The image of a data URL cannot be read: {error}") from None
