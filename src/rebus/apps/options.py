"""The options that several verbs of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from rebus.errors import RebusError

System = Annotated[str, arg(metavar="SYSTEM", help="which model: NAME:VARIANT of `rebus list`, a folder, or a hub id")]
Weights = Annotated[
    Path | None,
    arg(metavar="FOLDER", help="weights of one's own: a folder that training wrote", help_behavior_hint=""),
]
Adapter = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="which speciality: the name of one beside the weights, a folder, or none",
        help_behavior_hint="(default: the one for this, where there is one)",
    ),
]
Device = Annotated[str, arg(metavar="DEVICE", help="cpu, cuda, mps, or auto for the best that is there")]
Seed = Annotated[int, arg(help="of everything random: the same seed gives the same reply")]
Steps = Annotated[
    int | None, arg(metavar="INT", help="denoising steps of a picture", help_behavior_hint="(default: the model's)")
]
Temperature = Annotated[float, arg(metavar="NUMBER", help="0 takes the likeliest word; about 1 is free")]
BestOf = Annotated[
    int,
    arg(
        metavar="INT",
        help="draw so many and keep the one that the model recognises best; needs a --temperature above 0",
    ),
]
MaxTokens = Annotated[int, arg(help="longest reply, in tokens")]
Picture = Annotated[Path, arg(metavar="IMAGE", help="a picture file")]
Pictures = Annotated[tuple[Path, ...], arg(metavar="IMAGE [IMAGE …]", help="picture files", help_behavior_hint="")]


def not_empty(text: str, what: str) -> str:
    """The text without space around it. Raises RebusError when nothing is left; `what` is what it calls it."""
    if not text.strip():
        raise RebusError(f'The {what} is empty, so there is nothing to answer. Write it in quotes: "a red apple".')
    return text.strip()
