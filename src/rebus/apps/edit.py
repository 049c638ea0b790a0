"""`rebus edit`: a picture is changed as one asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console
from tyro.conf import Positional, arg

from rebus.apps.loading import load_system
from rebus.apps.memory import save_drawing
from rebus.apps.options import Adapter, Device, Picture, Seed, Steps, System, Temperature, Weights, not_empty
from rebus.apps.terminal import show
from rebus.document import Document, Image, user
from rebus.errors import RebusError
from rebus.images import open_image
from rebus.sampling import Sampling
from rebus.visual import ImageSampling

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Guidance = Annotated[
    float | None,
    arg(metavar="NUMBER", help="how strongly the words are followed", help_behavior_hint="(default: the model's)"),
]
Keeping = Annotated[
    float | None,
    arg(metavar="NUMBER", help="how strongly the picture is kept", help_behavior_hint="(default: the model's)"),
]


def edit(
    image: Positional[Picture],
    instruction: Positional[Annotated[str, arg(metavar="INSTRUCTION", help="what to change")]],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE", help="the picture file to write")] = Path(
        "edited.png"
    ),
    system: System = "seed_x:mini",
    seed: Seed = 0,
    steps: Steps = None,
    text_guidance: Guidance = None,
    image_guidance: Keeping = None,
    temperature: Temperature = 0.0,
    adapter: Adapter = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Change a picture as words say, and keep the rest of it."""
    pixels = open_image(image)
    asked = Document((user(Image(pixels), not_empty(instruction, "instruction")),))
    model = load_system(system, err, weights=weights, device=device, adapter=adapter, usual="edit")
    if not model.edits:
        raise RebusError(
            f"{system} draws every picture anew: its image decoder does not see the picture that is to be changed. "
            "Name a model that edits, such as seed_x:mini."
        )
    drawing = ImageSampling(steps=steps, guidance=text_guidance, image_guidance=image_guidance)
    generator = torch.Generator().manual_seed(seed)
    stream = model.stream(
        asked, modality="image", sampling=Sampling(temperature=temperature, image=drawing), generator=generator
    )
    drawn = [part for part in show(stream, out, lambda image: save_drawing(image, output)) if isinstance(part, Image)]
    if not drawn or drawn[-1].pixels is None:
        raise RebusError(f"{system} drew nothing for {instruction!r}. Try other words or another --seed.")
