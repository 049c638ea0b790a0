"""The tokens of one image as a safetensors file: what a token shard holds in the place of a picture.

Codes of one tokenizer that serve both readings are stored once. Vectors are stored in half precision unless asked
otherwise, and read back as float32, which is what a tokenizer gives.

Dimension key: N visual tokens · W views of one image · C visual width
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rebus.data.lines import Unreadable
from rebus.document import Image
from rebus.errors import RebusError
from rebus.visual import Codes, Features, Patches, VisualTokens

ENDING = "safetensors"
"""What the name of a token file ends in, after the name of the picture that it stands for: `0001.jpg.safetensors`."""
FORM = "rebus tokens 1"

Number = Literal["float16", "bfloat16", "float32"]
"""Number formats that vectors may be stored in."""
NUMBERS: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def pack(image: Image, number: Number = "float16") -> bytes:
    """The tokens that an image has, pixels left out; the same tokens give the same bytes. Raises RebusError for an image
    without tokens, and for vectors that `number` cannot hold."""
    readings = {"understood": image.understood, "generated": image.generated}
    found = {name: tokens for name, tokens in readings.items() if tokens is not None}
    if not found:
        raise RebusError("An image without tokens has nothing to store. Give it to a tokenizer first.")
    if len({tokens.source for tokens in found.values()}) > 1:
        raise RebusError(
            f"The two readings of an image are of different tokenizers: {', '.join(t.source for t in found.values())}. "
            "Encode it with one."
        )
    if image.understood is not None and _same(image.understood, image.generated):
        found = {"both": image.understood}
    tensors: dict[str, Tensor] = {}
    for name, tokens in found.items():
        tensors |= {f"{name}.{part}": x.contiguous() for part, x in _tensors(tokens, NUMBERS[number]).items()}
    about = {
        "form": FORM,
        "source": next(iter(found.values())).source,
        "kinds": {name: type(tokens).__name__ for name, tokens in found.items()},
    }
    # one value: the order of several is not the same in every run
    return save(tensors, {"rebus": json.dumps(about, sort_keys=True)})


def unpack(data: bytes, name: str) -> Image:
    """The inverse of `pack`. Raises Unreadable, with the `name` of what was read, for anything else."""
    try:
        about = _about(data)
        tensors = load(data)
        if about["form"] != FORM:
            raise KeyError(about["form"])
        tokens = {
            reading: _tokens(kind, reading, tensors, str(about["source"])) for reading, kind in about["kinds"].items()
        }
        understood = tokens.get("both", tokens.get("understood"))
        return Image(understood=understood, generated=tokens.get("both", tokens.get("generated")))
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise Unreadable(f"{name} holds no tokens that can be read ({error}). It is skipped.") from None


def _about(data: bytes) -> dict:
    """What a file says of itself; the library reads this of files on a disk only."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["rebus"])


def _same(one: VisualTokens, other: VisualTokens | None) -> bool:
    return isinstance(one, Codes) and isinstance(other, Codes) and torch.equal(one.ids_N, other.ids_N)


def _tensors(tokens: VisualTokens, dtype: torch.dtype) -> dict[str, Tensor]:
    match tokens:
        case Codes():
            return {"ids_N": tokens.ids_N.cpu().to(torch.int32)}
        case Features():
            held = {"x_WNC": _stored(tokens.x_WNC, dtype)}
            return held if tokens.position_W2 is None else held | {"position_W2": tokens.position_W2.cpu().float()}
        case Patches():
            return {"x_NC": _stored(tokens.x_NC, dtype), "keep_N": tokens.keep_N.cpu()}


def _stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    held = x.cpu().to(dtype)
    if not torch.isfinite(held).all():
        raise RebusError(
            f"Vectors of up to {x.abs().max().item():.3g} cannot be stored as {str(dtype).removeprefix('torch.')}. "
            "Store them as bfloat16 or float32."
        )
    return held


def _tokens(kind: str, reading: str, tensors: Mapping[str, Tensor], source: str) -> VisualTokens:
    def held(part: str) -> Tensor:
        return tensors[f"{reading}.{part}"]

    match kind:
        case "Codes":
            return Codes(held("ids_N").long(), source)
        case "Features":
            position = tensors.get(f"{reading}.position_W2")
            return Features(held("x_WNC").float(), source, position)
        case "Patches":
            return Patches(held("x_NC").float(), held("keep_N"), source)
    raise KeyError(kind)
