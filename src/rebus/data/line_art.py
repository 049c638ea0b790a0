"""Line drawings of the embedded pictures: their SVGs with every fill stripped to white and every shape outlined.

Only sets that are published as SVG have them (all but Fluent 3D). What a shape hides stays hidden.

Dimension key: N pictures, h w height and width in pixels
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from rebus.data.emoji_sets import SETS, Drawing, drawings
from rebus.data.pictures import Pictures
from rebus.errors import RebusError
from rebus.packages import Progress

LineArt = Mapping[str, NDArray[np.uint8]]
"""Key of a picture → its line drawing, RGBA [64, 64, 4]."""

FILE = "line_art.npz"
"""Their name beside the pictures."""
INK = "#222222"
PEN = 1 / 56
"""Width of a line, as a share of the picture's width."""
_SHAPES = ("path", "circle", "ellipse", "rect", "polygon", "polyline", "line", "use")
_UNSEEN = ("defs", "clipPath", "mask", "linearGradient", "radialGradient", "filter", "symbol")
_PAINT = ("fill", "stroke", "style", "class", "opacity", "fill-opacity", "stroke-opacity", "filter", "mask")
_WHITE = ("none", "transparent")


def outlined(svg: str) -> str:
    """The drawing as white shapes with dark outlines. Raises RebusError for what is no SVG with a view box."""
    try:
        root = ElementTree.fromstring(svg)
        width = float(root.attrib["viewBox"].split()[2])
    except (ElementTree.ParseError, KeyError, IndexError, ValueError) as error:
        raise RebusError(f"A drawing cannot be outlined, because it is no SVG with a view box ({error}).") from None
    _strip(root, pen=f"{width * PEN:.4g}", filled=True)
    return ElementTree.tostring(root, encoding="unicode")


def _strip(element: ElementTree.Element, *, pen: str, filled: bool) -> None:
    kind = element.tag.rpartition("}")[2]
    if kind in _UNSEEN:
        return
    style = element.attrib.get("style", "").replace(" ", "")
    fill = element.attrib.get("fill") or next(
        (part.removeprefix("fill:") for part in style.split(";") if part.startswith("fill:")), None
    )
    filled = filled if fill is None else fill not in _WHITE
    for name in _PAINT:
        element.attrib.pop(name, None)
    if kind in _SHAPES:
        element.attrib |= {"fill": "#ffffff" if filled else "none", "stroke": INK, "stroke-width": pen}
    for child in element:
        _strip(child, pen=pen, filled=filled)


def render_lines(svg: str) -> NDArray[np.uint8]:
    """The line drawing of an SVG as RGBA [64, 64, 4]."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=outlined(svg), width=128, height=128))
    with PIL.Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGBA").convert("RGBa")
    square = PIL.Image.new("RGBa", (128, 128))
    image.thumbnail((128, 128), PIL.Image.Resampling.BOX)
    square.paste(image, ((128 - image.width) // 2, (128 - image.height) // 2))
    return np.asarray(square.reduce(2).convert("RGBA"))


def key_of(drawing: Drawing) -> str:
    """The key that its picture has among `Pictures`."""
    return "/".join(part for part in (*SETS[drawing.package], drawing.name) if part)


def build_line_art(pictures: Pictures, path: Path, cache: Path, progress: Progress | None = None) -> Path:
    """Renders the line drawings of all `pictures` that come from an SVG, into the file `path` (`.npz`), whole or not at
    all. A file that is there is left as it is. Raises RebusError if a package is not in `cache` and cannot be fetched."""
    if path.exists():
        return path
    report = progress or (lambda what, done, of: None)
    wanted = set(pictures.key)
    found: dict[str, NDArray[np.uint8]] = {}
    for drawing in drawings(cache, progress):
        key = key_of(drawing)
        if key in wanted and isinstance(drawing.source, str):
            found[key] = render_lines(drawing.source)
            if len(found) % 256 == 0:
                report("drawing lines", len(found), len(wanted))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    with scratch.open("wb") as file:
        np.savez_compressed(file, keys=np.array(list(found)), rgba_N=np.stack(list(found.values())))
    scratch.replace(path)
    return path


def load_line_art(path: Path) -> LineArt:
    """The line drawings that `build_line_art` wrote. Raises RebusError when there are none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return dict(zip(held["keys"].tolist(), held["rgba_N"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise RebusError(f"{path} holds no line drawings ({error}). Draw them with `build_line_art`.") from None
