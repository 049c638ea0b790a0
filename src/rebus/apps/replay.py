"""`rebus replay`: a picture that remembers is drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import torch
from rich.console import Console
from tyro.conf import Positional, arg

from rebus.apps.loading import load_system, variants
from rebus.apps.memory import check_tokens, recall, save_drawing
from rebus.apps.options import Device, Picture, Weights
from rebus.apps.safety import Safety, check_drawings
from rebus.apps.terminal import show
from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import decode_image, note_of, read_picture
from rebus.visual import Drawn, Progress, VisualTokens

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Model = Annotated[
    str | None,
    arg(metavar="SYSTEM", help="which model draws", help_behavior_hint="(default: the one that the picture names)"),
]


def replay(
    image: Positional[Picture],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE", help="the picture file to write")] = Path(
        "replayed.png"
    ),
    system: Model = None,
    safety: Safety = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Draw a picture again from what its file remembers: tokens, seed and settings."""
    data = read_picture(image)
    before = decode_image(data, name=str(image))
    text = note_of(data)
    if text is None:
        raise RebusError(
            f"{image} does not remember how it was drawn. PNG files that rebus writes do, unless another program has "
            "written them again since."
        )
    try:
        tokens, drawn = recall(text, before)
    except RebusError as error:
        raise RebusError(f"{image} cannot be drawn again. {error} Take the file that rebus wrote.") from None
    name = system or _known(drawn.model, image)
    model = load_system(name, err, weights=weights, device=device, parts=("detokenizer",))
    if model.weights != drawn.weights:
        raise RebusError(
            f"{image} was drawn by weights {drawn.weights} of {drawn.model}, but those of {name} here are {model.weights}. "
            "Name the ones that drew it with --weights FOLDER."
        )
    check_tokens(tokens, model)
    check_drawings(model, safety)
    shown = show(draw_again(model, tokens, drawn), out, lambda again: save_drawing(again, output))
    (again,) = (part for part in shown if isinstance(part, Image))
    assert again.pixels is not None
    out.print(difference(before, again.pixels), style="dim")


def draw_again(model: Any, tokens: VisualTokens, drawn: Drawn) -> Any:
    """`Progress`, then the image, from the tokens of a picture and how it was drawn."""
    drawing = model.detokenizer.decode(
        [tokens],
        sources=[drawn.source],
        negatives=[None],
        generators=[torch.Generator().manual_seed(drawn.seed)],
        sampling=drawn.sampling,
    )
    return (p if isinstance(p, Progress) else Image(p, generated=tokens, drawn=drawn) for p in drawing)


def difference(before: PIL.Image.Image, again: PIL.Image.Image) -> str:
    """What two pictures of one note differ in, in words."""
    if before.size != again.size:
        return f"another size than before: {again.size}, was {before.size}"
    off = np.abs(np.asarray(before).astype(int) - np.asarray(again).astype(int))
    if not off.any():
        return "bit for bit the same"
    changed = float((off.max(-1) > 0).mean())
    return (
        f"not quite the same: {changed:.1%} of the pixels differ, by up to {off.max()} of 255. Another machine, device or "
        "version of torch rounds differently."
    )


def _known(name: str, image: Path) -> str:
    """The model that a picture names, if this library has it: a name from a file never says what to import."""
    known = [variant for variant, _ in variants()]
    if name not in known:
        raise RebusError(
            f"{image} was drawn by {name!r:.80}, which this library does not have; it has {', '.join(known)}. "
            "Name the model yourself with --system."
        )
    return name
