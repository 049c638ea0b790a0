"""Pictures in and out: open files that strangers send, resize and normalise them for a model, write them back.

Whatever the file holds (palette, alpha, CMYK, 16 bits, a rotation tag, an animation) comes out as upright 8-bit RGB;
whatever cannot be read is a RebusError that names the file.

Dimension key: I images · h w height and width in pixels
"""

from __future__ import annotations

import io
import os
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from einops import rearrange
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rebus.errors import RebusError

MAX_PIXELS = 64_000_000
"""The largest picture that is decoded: 8,000 × 8,000, which needs 192 MB as RGB."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
"""What may be opened. Pillow knows more, but some (EPS) start other programs."""

RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
"""Channel means that CLIP and EVA-CLIP were trained with."""

CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
"""Channel deviations that CLIP and EVA-CLIP were trained with."""

HALF: RGB = (0.5, 0.5, 0.5)
"""As mean and as deviation: pixels in -1..1, the range of diffusion autoencoders."""

ZERO: RGB = (0.0, 0.0, 0.0)
ONE: RGB = (1.0, 1.0, 1.0)

Resize = Literal["bilinear", "bicubic"]
Crop = Literal["none", "centre"]

_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}


# ------------------------------------------------------------------------------------------------ opening


def open_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """The picture in the file `path` as upright RGB, fully decoded; of an animation, its first frame.

    Raises RebusError if there is no such file, it is empty, cut off, not a picture, or has more than `max_pixels`
    pixels (which is read from its header, before anything is decoded; Pillow itself refuses more than 178 million).
    """
    return decode_image(read_picture(path), name=str(Path(path)), max_pixels=max_pixels)


def read_picture(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a picture's file. Raises RebusError where it cannot be read."""
    file = Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise RebusError(f"There is no file {file}. Check the path of the picture.") from None
    except IsADirectoryError:
        raise RebusError(f"{file} is a folder, not a picture. Name one of the files in it.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise RebusError(f"The file {str(file)!r} cannot be read: {reason}. Check its path and permissions.") from None


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """Like `open_image`, for the bytes of a file; `name` is what an error calls it."""
    if not data:
        raise RebusError(f"{name} is empty (0 bytes), so there is no picture in it. Copy or download it again.")
    limit = f"more than the {max_pixels:,} pixels that are opened. Make it smaller first."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit below is stricter than the one Pillow warns of
            image = PIL.Image.open(io.BytesIO(data), formats=_readable())
    except PIL.Image.DecompressionBombError:
        raise RebusError(f"{name} is a picture of {limit}") from None
    except PIL.UnidentifiedImageError:
        known = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF"
        raise RebusError(f"{name} ({len(data):,} bytes) is not a picture that can be read. {known} can.") from None
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them stumble over
        raise _damaged(name, error) from None
    if image.width * image.height > max_pixels:
        raise RebusError(f"{name} is {image.width:,} × {image.height:,}, {limit}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.seek(0)
            image.load()
            return to_rgb(_upright(image))
    except Exception as error:
        raise _damaged(name, error) from None


def _readable() -> list[str]:
    PIL.Image.init()
    return [file_format for file_format in FORMATS if file_format in PIL.Image.OPEN]  # not every Pillow has AVIF


def _damaged(name: str, error: Exception) -> RebusError:
    return RebusError(f"{name} is a damaged or cut-off picture ({error}). Copy or download it again.")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture turned as its EXIF tag says; a tag that cannot be read turns nothing."""
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:
        return image


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Any Pillow mode → 8-bit RGB: alpha is laid on white, 16-bit grey keeps its upper eight bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        grey_hw = np.asarray(image).astype(np.int64)
        grey_hw = grey_hw >> 8 if image.mode != "I" or grey_hw.max() > 255 else grey_hw
        return PIL.Image.fromarray(grey_hw.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":  # floating-point grey, of range 0..1 or 0..255
        values_hw = np.nan_to_num(np.asarray(image))
        values_hw = values_hw * 255 if values_hw.max() <= 1 else values_hw
        return PIL.Image.fromarray(values_hw.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


# ----------------------------------------------------------------------------------------- to and from tensors


def prepare(
    images: Sequence[PIL.Image.Image],
    size: int | tuple[int, int],
    *,
    resize: Resize = "bilinear",
    crop: Crop = "none",
    mean: RGB = ZERO,
    std: RGB = ONE,
) -> Tensor:
    """Pictures → float32 pixels_I3hw, `(value in 0..1 - mean) / std` in each channel.

    `size` is the side of a square, or (height, width). `crop="none"` stretches the picture to it; `"centre"` resizes
    the picture until it just covers it and cuts the middle out. Resizing is antialiased (Pillow's filters).
    """
    h, w = (size, size) if isinstance(size, int) else size
    if not images:
        return torch.zeros(0, 3, h, w)
    fitted = [_fit(to_rgb(image), h, w, resize, crop) for image in images]
    pixels_Ihw3 = torch.from_numpy(np.stack([np.asarray(image) for image in fitted]))
    pixels_I3hw = rearrange(pixels_Ihw3, "I h w c -> I c h w").float() / 255
    return (pixels_I3hw - _channels(mean)) / _channels(std)


def _fit(image: PIL.Image.Image, h: int, w: int, resize: Resize, crop: Crop) -> PIL.Image.Image:
    if crop == "none":
        return image if image.size == (w, h) else image.resize((w, h), _FILTERS[resize])
    scale = max(h / image.height, w / image.width)
    # int(), not round(): the longer side is cut down, as the published transforms do
    covering = (max(w, int(image.width * scale)), max(h, int(image.height * scale)))
    if image.size != covering:
        image = image.resize(covering, _FILTERS[resize])
    left, top = round((image.width - w) / 2), round((image.height - h) / 2)
    return image.crop((left, top, left + w, top + h))


def to_pil(pixels_I3hw: Tensor, *, mean: RGB = ZERO, std: RGB = ONE) -> list[PIL.Image.Image]:
    """The inverse of `prepare` (without the resizing): pixels → pictures, values outside 0..1 clipped.

    Raises RebusError for values that are not numbers, which a half-precision decoder can produce and which would
    silently become black.
    """
    pixels_I3hw = pixels_I3hw.detach().float().cpu()
    if not torch.isfinite(pixels_I3hw).all():
        raise RebusError(
            f"{int((~torch.isfinite(pixels_I3hw)).sum()):,} of {pixels_I3hw.numel():,} pixel values are not finite "
            "numbers, so there is no picture to show. Run the image decoder in float32 or bfloat16."
        )
    pixels_I3hw = (pixels_I3hw * _channels(std) + _channels(mean)).clamp(0, 1)
    pixels_Ihw3 = rearrange((pixels_I3hw * 255).round().to(torch.uint8), "I c h w -> I h w c")
    return [PIL.Image.fromarray(pixels_hw3.numpy()) for pixels_hw3 in pixels_Ihw3]


def _channels(values: RGB) -> Tensor:
    return rearrange(torch.tensor(values, dtype=torch.float32), "c -> 1 c 1 1")


# ------------------------------------------------------------------------------------------------ writing


NOTE = "rebus"
"""The keyword of the text chunk of a PNG file that holds what the picture remembers."""


def to_png(image: PIL.Image.Image, note: str | None = None) -> bytes:
    """The picture as a PNG file, with an ASCII `note` in it that viewers do not show."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=_chunks(note))
    return buffer.getvalue()


def note_of(data: bytes) -> str | None:
    """The note in the bytes of a PNG file; None in other files and where there is none. Anyone may have written it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            note = PIL.Image.open(io.BytesIO(data), formats=["PNG"]).info.get(NOTE)
    except Exception:  # Pillow's readers raise whatever a broken header makes them stumble over
        return None
    return str(note) if isinstance(note, str) else None


def _chunks(note: str | None) -> PngInfo | None:
    if note is None:
        return None
    chunks = PngInfo()
    chunks.add_text(NOTE, note)
    return chunks


def save_image(image: PIL.Image.Image, path: str | os.PathLike[str], *, note: str | None = None) -> Path:
    """Writes the picture, whole or not at all, in the format that the ending of `path` names; makes the folder. A PNG
    file takes an ASCII `note` along; other formats have no place for it.

    Raises RebusError for an ending that names no picture format and for a folder that cannot be written.
    """
    file = Path(path)
    file_format = PIL.Image.registered_extensions().get(file.suffix.lower())
    if file_format not in FORMATS or file_format not in PIL.Image.SAVE:
        raise RebusError(f"{file} does not end like a picture file, so its format is unknown. End it in .png or .jpg.")
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    options = {"pnginfo": _chunks(note)} if file_format == "PNG" and note is not None else {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(part, format=file_format, **options)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise RebusError(f"{file} cannot be written: {error.strerror or error}. Choose another folder.") from None
    return file
