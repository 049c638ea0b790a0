"""The terminal: replies streamed as they are made, and pictures as half-block characters.

A half block (▀) shows two pixels in one character cell: the upper as its colour, the lower as its background.

Dimension key: h w height and width in pixels
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL.Image
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from rebus.apps.memory import save_drawing
from rebus.document import Box, Image, Part
from rebus.images import to_rgb
from rebus.visual import Codes, Progress

MAX_COLUMNS = 48
"""The widest picture, in characters."""

MAX_ROWS = 28
"""The tallest picture, in lines."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a model may write and a terminal would obey."""

Keep = Callable[[Image], Path]
"""Saves an image that has pixels and says where."""


# ------------------------------------------------------------------------------------------------ pictures


def half_blocks(image: PIL.Image.Image, columns: int, rows: int = MAX_ROWS) -> Text:
    """The picture in at most `columns` × `rows` characters of 24-bit colour, its shape kept, never enlarged."""
    scale = min(1.0, columns / image.width, 2 * rows / image.height)
    width, lines = max(1, round(image.width * scale)), max(1, round(image.height * scale / 2))
    small = to_rgb(image).resize((width, 2 * lines), PIL.Image.Resampling.LANCZOS)
    pixels_hw3 = np.asarray(small).tolist()
    text = Text(no_wrap=True, end="")
    for upper_w3, lower_w3 in zip(pixels_hw3[::2], pixels_hw3[1::2], strict=True):
        for upper, lower in zip(upper_w3, lower_w3, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        text.append("\n")
    return text


def picture(image: PIL.Image.Image, console: Console) -> Text:
    """The picture in as many characters as the console has room for; nothing where it shows no colours."""
    if not console.is_terminal or console.no_color or console.color_system is None:
        return Text(end="")
    return half_blocks(image, min(MAX_COLUMNS, console.width - 1))


# ------------------------------------------------------------------------------------------------ replies


def show(stream: Iterable[str | Image | Box | Progress], console: Console, keep: Keep) -> tuple[Part, ...]:
    """Shows a reply while it is made and returns its parts; `keep` saves each picture.

    The stream is closed whatever happens, so that Ctrl-C stops the model and not only the display.
    """
    shown = _Shown(console)
    parts: list[Part] = []
    try:
        for piece in stream:
            match piece:
                case Progress():
                    shown.progress(piece)
                case str():
                    shown.text(piece)
                    if parts and isinstance(parts[-1], str):
                        parts[-1] += piece
                    else:
                        parts.append(piece)
                case Box():
                    shown.text(f"‹box {piece.cx:.2f} {piece.cy:.2f} {piece.w:.2f} {piece.h:.2f}›")
                    parts.append(piece)
                case Image():
                    shown.image(piece, keep)
                    parts.append(piece)
    finally:
        shown.end_line()
        if close := getattr(stream, "close", None):
            close()
    if console.is_terminal and not any(not isinstance(part, str) or part.strip() for part in parts):
        console.print("an empty reply", style="dim")
    return tuple(parts)


class _Shown:
    """Where on the console the reply stands: in a line of text, at a bar, or at the beginning of a line."""

    def __init__(self, console: Console):
        self.console = console
        self.in_line = False
        self.live: Live | None = None

    def text(self, piece: str) -> None:
        self._end_bar()
        piece = CONTROL.sub("", piece if self.in_line else piece.lstrip())
        self.console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        self.in_line = self.in_line or bool(piece)

    def progress(self, progress: Progress) -> None:
        if not self.console.is_terminal:
            return
        if self.live is None:
            self.end_line()
            self.live = Live(console=self.console, transient=True, auto_refresh=False)
            self.live.start()
        self.live.update(_drawing(progress, self.console), refresh=True)

    def image(self, image: Image, keep: Keep) -> None:
        self.end_line()
        if image.pixels is None:
            what = f"{len(image.generated.ids_N)} codes" if isinstance(image.generated, Codes) else "tokens"
            self.console.print(f"an image of {what}, not drawn: no detokenizer is loaded", style="dim")
            return
        self.console.print(picture(image.pixels, self.console), end="")
        if name := str(keep(image)):
            self.console.print(Text(f"saved as {name}", "dim"), soft_wrap=True)

    def end_line(self) -> None:
        self._end_bar()
        if self.in_line:
            self.console.print()
        self.in_line = False

    def _end_bar(self) -> None:
        if self.live is not None:
            self.live.stop()
        self.live = None


def _drawing(progress: Progress, console: Console) -> RenderableType:
    bar = Table.grid(padding=(0, 1))
    bar.add_row("drawing", ProgressBar(progress.of, progress.step, width=24), f"{progress.step}/{progress.of}")
    return bar if progress.preview is None else Group(picture(progress.preview, console), bar)


def keep_in(folder: Path, stem: str = "image") -> Keep:
    """A `keep` that numbers the pictures of a folder on from those that are there; they remember how they were drawn."""

    def keep(image: Image) -> Path:
        taken = [int(m[1]) for file in folder.glob(f"{stem}-*.png") if (m := re.search(r"-(\d+)\.png$", file.name))]
        return save_drawing(image, folder / f"{stem}-{max(taken, default=0) + 1:03}.png")

    return keep
