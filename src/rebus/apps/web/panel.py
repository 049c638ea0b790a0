"""What the inspector's panels share: the picture that is looked at, a model of one paper, and errors told kindly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image

from rebus.apps.inspecting import redrawn
from rebus.apps.web import figures
from rebus.apps.web.models import Models
from rebus.apps.web.transcript import safe
from rebus.errors import RebusError
from rebus.images import open_image
from rebus.visual import Progress, VisualTokens

Update = dict[Any, Any]
WORKING = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
"""Models work for one visitor at a time."""


def picture_input(label: str, **options: Any) -> gr.Image:
    """Where a picture can be dropped, pasted or chosen. The path of its file is handed on as it is: what is in it is for
    `images.open_image` to judge, whose errors help."""
    picture = gr.Image(
        label=label, type="filepath", sources=["upload", "clipboard"], format="png", buttons=[], **options
    )
    vars(picture)["preprocess"] = lambda payload: None if payload is None else payload.path
    return picture


@dataclass
class Panel:
    """A tab of the inspector: `look(path)` yields what `outputs` show of the picture that lies there."""

    name: str
    look: Callable[..., Iterator[Update]]
    outputs: Sequence[Any]


def opened(path: str) -> PIL.Image.Image:
    """The picture that was uploaded, errors without the folder it lies in."""
    try:
        return open_image(path)
    except RebusError as error:
        raise RebusError(str(error).replace(str(Path(path)), Path(path).name)) from None


def kindly(look: Callable[..., Iterator[Update]], where: Any) -> Callable[..., Iterator[Update]]:
    """The function, with errors shown where its facts would be."""

    def call(*given: Any) -> Iterator[Update]:
        try:
            yield from look(*given)
        except RebusError as error:
            yield {where: figures.note(str(error))}

    return call


def model_note(models: Models, paper: str) -> str:
    """What is said of a paper's model: that it is missing, or random; nothing when all is well."""
    name = models.of_paper(paper)
    if name is None:
        return figures.note(models.missing(paper))
    return figures.note(f"{name}. {figures.RANDOM}") if name.endswith(":tiny") else ""


def waking(name: str) -> str:
    """What is shown while a model is loaded."""
    return f'<p class="waiting"><i></i><i></i><i></i><span>waking {safe(name)} up</span></p>'


def drawn(
    system: Any, tokens: Sequence[VisualTokens], show: Callable[[str], Update]
) -> Iterator[Update | PIL.Image.Image]:
    """`show` of a bar while the tokens are drawn, then the pictures."""
    for piece in redrawn(system, tokens):
        yield show(figures.drawing(piece.step, piece.of, piece.preview)) if isinstance(piece, Progress) else piece
