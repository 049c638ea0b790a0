"""Pictures that remember: how a picture was drawn, written into its PNG file, and read again with due mistrust.

A note is JSON of a few known fields. Anyone can write one, so nothing of it is believed before it is checked: its size before
it is parsed, every field's type and range, that it belongs to these very pixels, and, before tokens are used, that they are
tokens of the model that is to use them. A note that fails is passed over, and the picture is read as any other.

Dimension key: N codes · W views of one image · C width of a feature
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from rebus.document import Document, Image, assistant
from rebus.errors import RebusError
from rebus.images import decode_image, note_of, read_picture, save_image, to_png
from rebus.visual import Codes, Drawn, Features, ImageSampling, VisualTokens

VERSION = 1
MAX_NOTE = 16_000_000
"""The longest note that is parsed, in characters: an image of SEED-X's vectors with its source needs about two million."""
MAX_CODES = 65_536
MAX_STEPS = 1_000
MAX_SIDE = 4_096
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


# ------------------------------------------------------------------------------------------------ writing


def note(image: Image) -> str | None:
    """What a picture that was drawn here remembers; None for any other, and for tokens that cannot be written down."""
    if image.drawn is None or image.pixels is None or not isinstance(image.generated, Codes | Features):
        return None
    drawn = image.drawn
    given = {name: value for name, value in dataclasses.asdict(drawn.sampling).items() if value is not None}
    fields: dict[str, Any] = {
        "rebus": VERSION,
        "model": drawn.model,
        "weights": drawn.weights,
        "seed": drawn.seed,
        "settings": given,
        "tokens": _tokens_to_json(image.generated),
        "pixels": fingerprint(image.pixels),
        "made with": {name: metadata.version(name) for name in ("rebus-lm", "torch")},
    }
    if drawn.source is not None:
        fields["source"] = base64.b64encode(to_png(drawn.source)).decode()
    text = json.dumps(fields)
    return text if len(text) <= MAX_NOTE else None  # a huge source: better no note than one that is never read


def remembering_png(image: Image) -> bytes:
    """The picture as a PNG file that remembers. Raises RebusError for an image without pixels."""
    if image.pixels is None:
        raise RebusError("An image that has tokens and no pixels cannot be written as a picture. Detokenize it first.")
    return to_png(image.pixels, note(image))


def save_drawing(image: Image, path: Path) -> Path:
    """Writes the picture as `save_image` does; a PNG file remembers how it was drawn. Raises RebusError as that does, and
    for an image without pixels."""
    if image.pixels is None:
        raise RebusError("An image that has tokens and no pixels cannot be saved as a picture. Detokenize it first.")
    return save_image(image.pixels, path, note=note(image))


def fingerprint(pixels: PIL.Image.Image) -> str:
    """SHA-256 of a picture's size and pixels."""
    rgb = pixels.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def _tokens_to_json(tokens: Codes | Features) -> dict[str, Any]:
    if isinstance(tokens, Codes):
        return {"source": tokens.source, "codes": tokens.ids_N.tolist()}
    x_WNC = tokens.x_WNC.detach().cpu().contiguous()
    data = base64.b64encode(x_WNC.view(torch.uint8).numpy().tobytes()).decode()
    shape, dtype = list(x_WNC.shape), str(x_WNC.dtype).removeprefix("torch.")
    return {"source": tokens.source, "shape": shape, "dtype": dtype, "features": data}


# ------------------------------------------------------------------------------------------------ reading


def recall(text: str, pixels: PIL.Image.Image) -> tuple[VisualTokens, Drawn]:
    """The tokens of a picture and how it was drawn, from the note that was in its file. Raises RebusError for a note that is
    too long, is not JSON, lacks a field, holds a value that cannot be, or belongs to other pixels."""
    if len(text) > MAX_NOTE:
        raise RebusError(f"Its note has {len(text):,} characters, more than the {MAX_NOTE:,} that are read.")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise RebusError("Its note is not JSON.") from None
    match fields:
        case {
            "rebus": 1,
            "model": str(model),
            "weights": str(weights),
            "seed": int(seed),
            "settings": dict(settings),
            "tokens": dict(tokens),
            "pixels": str(mark),
        } if len(model) <= 200 and len(weights) <= 200 and type(seed) is int and 0 <= seed < 2**63:
            if mark != fingerprint(pixels):
                raise RebusError("It was changed after it was drawn.")
            source = fields.get("source")
            kept = None if source is None else _source(source)
            return _tokens(tokens), Drawn(model, weights, seed, _settings(settings), kept)
        case {"rebus": int(version)} if version != VERSION:
            raise RebusError(f"Its note is of form {version!r:.20}, but this version reads form {VERSION}.")
    raise RebusError("Its note lacks a field, or one of them holds what it cannot.")


def _settings(found: dict[Any, Any]) -> ImageSampling:
    known = {field.name for field in dataclasses.fields(ImageSampling)}
    checks = {
        "steps": lambda v: type(v) is int and 1 <= v <= MAX_STEPS,
        "codes": lambda v: type(v) is int and 1 <= v <= MAX_CODES,
        "noise_level": lambda v: type(v) is int and 0 <= v < 1_000,
        "guidance": _finite,
        "image_guidance": _finite,
        "size": lambda v: (
            isinstance(v, list) and len(v) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in v)
        ),
    }
    for name, value in found.items():
        if name not in known or name not in checks or not checks[name](value):
            raise RebusError(f"Its note has a setting {str(name)!r:.40} that cannot be.")
    settings: dict[str, Any] = {name: tuple(v) if name == "size" else v for name, v in found.items()}
    return ImageSampling(**settings)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e4 and math.isfinite(value)


def _tokens(found: dict[str, Any]) -> VisualTokens:
    match found:
        case {"source": str(source), "codes": [*ids]} if 0 < len(ids) <= MAX_CODES and all(
            type(code) is int and 0 <= code < 2**31 for code in ids
        ):
            return Codes(torch.tensor(ids), source)
        case {"source": str(source), "shape": [int(w), int(n), int(c)], "dtype": str(dtype), "features": str(data)} if (
            dtype in DTYPES and min(w, n, c) > 0
        ):
            try:
                raw = base64.b64decode(data, validate=True)
            except ValueError:
                raise RebusError("Its note holds features that cannot be read.") from None
            if len(raw) == w * n * c * DTYPES[dtype].itemsize:
                x_WNC = torch.frombuffer(bytearray(raw), dtype=DTYPES[dtype]).reshape(w, n, c)
                if x_WNC.isfinite().all():
                    return Features(x_WNC, source)
    raise RebusError("Its note holds tokens that cannot be read.")


def _source(found: Any) -> PIL.Image.Image:
    if isinstance(found, str):
        try:
            return decode_image(base64.b64decode(found, validate=True), name="the source", max_pixels=MAX_SIDE**2)
        except (ValueError, RebusError):
            pass
    raise RebusError("Its note holds a source picture that cannot be read.")


# ------------------------------------------------------------------------------------------------ opening


def open_drawing(path: Path, system: Any) -> tuple[Image, str | None]:
    """A picture file as an image for `system`: with its tokens where it remembers some that the system can use, and a notice
    for the user where it remembers something that is not used. Raises RebusError for a file that is no picture."""
    return read_drawing(read_picture(path), system, name=str(path))


def read_drawing(data: bytes, system: Any, *, name: str) -> tuple[Image, str | None]:
    """Like `open_drawing`, for the bytes of a file that errors call `name`."""
    pixels = decode_image(data, name=name)
    text = note_of(data)
    if text is None:
        return Image(pixels), None
    try:
        tokens, drawn = recall(text, pixels)
        check_tokens(tokens, system)
    except RebusError as error:
        return Image(pixels), f"{name} remembers how it was drawn, but this is not used. {error}"
    # vectors to be drawn are not those that are read (SEED-X): a picture of these is read again from its pixels
    understood = tokens if isinstance(tokens, Codes) else None
    return Image(pixels, understood, tokens, drawn), None


def check_tokens(tokens: VisualTokens, system: Any) -> None:
    """Raises RebusError unless the tokens are of this system's tokenizer and can be words of its grammar."""
    if tokens.source != system.grammar.source:
        raise RebusError(f"Its tokens are of {tokens.source!r:.80}, this model's of {system.grammar.source!r}.")
    if isinstance(tokens, Codes):
        system.grammar.serialize(Document((assistant(Image(generated=tokens)),)), template="plain")
