"""`make demo`: a short conversation with a trained model over the pictures of examples/, in the terminal and as a page."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
import tyro
from rich.console import Console
from rich.text import Text

from rebus.apps.boxes import with_boxes
from rebus.apps.files import write_whole
from rebus.apps.guard import guarded
from rebus.apps.loading import adapters, load_system, variants, where_weights
from rebus.apps.memory import save_drawing
from rebus.apps.page import render
from rebus.apps.patches import kept_over
from rebus.apps.terminal import picture, show
from rebus.document import Box, Document, Image, Message, user
from rebus.images import open_image, save_image
from rebus.sampling import Sampling
from rebus.system import reply
from rebus.system.parts import last_picture


@dataclass(frozen=True)
class Turn:
    """What is said to the model, and what kind of answer it may give."""

    says: str
    """the words"""
    shows: str | None = None
    """the picture before them, a file of the examples"""
    answer: Literal["any", "text", "image"] = "any"
    """what the reply may hold"""
    anew: bool = False
    """does a new conversation begin here?"""
    seed: int = 0
    """of the reply"""
    adapter: str = "chat"
    """which speciality answers, where the model has some"""


SCRIPT = (
    Turn("What is in this picture?", shows="penguin-fluent-3d.png", answer="text"),
    Turn("Which group does this belong to?", answer="text"),
    Turn("What is in this picture?", shows="sailboat-fluent-3d.png", answer="text", anew=True),
    Turn("Draw a red apple in Noto style.", answer="image", anew=True),
    Turn("Draw the same in Fluent 3D style.", answer="image"),
    Turn("Draw an evergreen tree in Noto style.", answer="image", anew=True),
    Turn("Give me two examples from objects, each with a picture.", anew=True),
)

SPECIAL = (
    Turn("Where is the apple?", shows="red-apple-noto.png", answer="text", anew=True),
    Turn(
        "Change the background to a light blue background.",
        shows="rocket-noto.png",
        answer="image",
        anew=True,
        adapter="edit",
    ),
    Turn("Add a star in the top left corner.", answer="image", adapter="edit"),
)
"""What is said besides to a model that has the specialities chat and edit: it points, and edits a picture twice in a row."""
OTHERS = ("lavit:mini", "seed_x:mini")
"""Models that have their say behind the first, where their weights are there."""
SHORT = (
    Turn("What is in this picture?", shows="sailboat-fluent-3d.png", answer="text"),
    Turn("Draw a red apple in Noto style.", answer="image", anew=True),
)
"""What they are asked; one that has specialities points and edits besides."""

SAMPLING = Sampling(max_new_tokens=256, guidance=1.5)
"""Greedy, with a little guidance, which gives drawings more of their shape."""

DRAWING = replace(SAMPLING, temperature=0.8, best_of=8)
"""Where only a picture is asked for: of several the one that the model itself recognises best."""


def converse(
    system: Any,
    script: Sequence[Turn],
    examples: Path,
    pictures: Path,
    console: Console,
    talking: Sampling,
    drawing: Sampling,
    specialities: Mapping[str, Any] | None = None,
) -> list[Document]:
    """Plays the script with a System, or with that of a turn's speciality where there is one, showing it as it goes; returns
    the conversations. `talking` is how replies are sampled, `drawing` how those that are a picture. What a reply points at is
    drawn into the picture, behind the reply, where a conversation ends with it."""
    conversations: list[Document] = []
    numbers = itertools.count(1)
    for number, turn in enumerate(script):
        if turn.anew or not conversations:
            conversations.append(Document(()))
        question = [turn.says]
        if turn.shows is not None:
            pixels = open_image(examples / turn.shows)
            console.print(picture(pixels, console), end="")
            console.print(Text(str(examples / turn.shows), "dim"))
            show_kept(system, pixels, pictures, console)
            message = user(Image(pixels), *question)
        else:
            message = user(*question)
        console.print(Text.assemble(("you › ", "bold blue"), turn.says))
        asked = conversations[-1].add(message)
        generator = torch.Generator().manual_seed(turn.seed)
        answering = (specialities or {}).get(turn.adapter, system)
        sampling = drawing if turn.answer == "image" else talking
        stream = reply(answering, asked, modality=turn.answer, sampling=sampling, generator=generator)
        parts = show(stream, console, lambda image: save_drawing(image, pictures / f"drawing-{next(numbers)}.png"))
        boxes = [part for part in parts if isinstance(part, Box)]
        ends = number + 1 == len(script) or script[number + 1].anew
        if boxes and ends and (pointed := last_picture(asked)) is not None:
            framed = with_boxes(pointed, boxes)
            console.print(picture(framed, console), end="")
            parts = (*parts, Image(framed))
        conversations[-1] = asked.add(Message("assistant", parts))
        console.print()
    return conversations


def show_kept(system: Any, pixels: PIL.Image.Image, folder: Path, console: Console) -> None:
    """Of a system that chooses patches: the picture with those that it keeps, also as a file."""
    if not hasattr(system.tokenizer, "choose"):
        return
    (seen,) = system.tokenizer.encode([Image(pixels)], {"understanding"}, generators=[torch.Generator().manual_seed(0)])
    mask, keep_N = kept_over(seen, system.name), seen.understood.keep_N
    console.print(picture(mask, console), end="")
    saved = save_image(mask, folder / f"kept-{len(list(folder.glob('kept-*'))) + 1}.png")
    console.print(Text(f"{int(keep_N.sum())} of {len(keep_N)} patches are kept: {saved}", "dim"))


def there(names: Sequence[str]) -> list[str]:
    """The models among these whose weights are there."""
    return [name for name, config in variants() if name in names and where_weights(name, config) != "absent"]


def demo(
    system: str = "seed:mini",
    examples: Path = Path("examples"),
    output: Path = Path("demo"),
    device: str = "auto",
    others: tuple[str, ...] = OTHERS,
) -> None:
    """A scripted conversation with a model, and a short one with each of some others.

    Args:
        system: which model: NAME:VARIANT
        examples: the folder of the pictures that are shown to it
        output: the folder for index.html and the pictures that it draws
        device: cpu, cuda, mps, or auto for the best that is there
        others: models that are asked a little too, where their weights are there
    """
    console, err = Console(highlight=False), Console(stderr=True, highlight=False)

    def played(name: str, script: tuple[Turn, ...], folder: Path) -> tuple[list[Document], int, float]:
        """What a model says to the script, how many replies these are, and when it began."""
        model = load_system(name, err, device=device, adapter="none")
        special = {one: model.with_adapter(one) for one in adapters(name)}
        script = (*script, *SPECIAL) if {"chat", "edit"} <= special.keys() else script
        loaded = time.perf_counter()
        return converse(model, script, examples, folder, console, SAMPLING, DRAWING, special), len(script), loaded

    began = time.perf_counter()
    conversations, replies, loaded = played(system, SCRIPT, output / "pictures")
    talked = time.perf_counter() - loaded
    also = there([name for name in others if name != system])
    for name in also:
        console.print(f"[bold]{name}[/bold]")
        conversations += played(name, SHORT, output / "pictures" / name.replace(":", "-"))[0]
    about = f"{system} on {device_name(device)}: {replies} replies in {talked:.0f} s, exactly as the model gave them."
    if also:
        about += f" Behind it are a few replies of {' and '.join(also)}."
    page = write_whole(output / "index.html", render(conversations, about=about))
    command = program()
    picture_file = examples / next(turn.shows for turn in SCRIPT if turn.shows)
    console.print(f"{about} It was loaded in {loaded - began:.0f} s.", style="dim", soft_wrap=True)
    console.print(f"The conversation as a page: [bold]{page}[/bold]\n\nNow it is your turn:", soft_wrap=True)
    console.print(f"  {command} chat", style="bold", soft_wrap=True)
    console.print(f'  {command} see {picture_file} "What is this?"', style="bold", soft_wrap=True)
    console.print(f'  {command} draw "a blue car" -o car.png', style="bold", soft_wrap=True)


def program() -> str:
    """How `rebus` is called from here: its path beside this Python, as short as it gets."""
    beside = Path(sys.executable).with_name("rebus")
    if not beside.exists():
        return "rebus"
    inside = os.path.relpath(beside)
    return str(beside) if inside.startswith("..") else inside


def device_name(device: str) -> str:
    """The device in words."""
    from rebus.apps.device import choose_device

    chosen = choose_device(device)
    threads = torch.get_num_threads()
    return str(chosen) if chosen.type != "cpu" else f"{threads} CPU threads" if threads > 1 else "one CPU thread"


if __name__ == "__main__":
    sys.exit(guarded(lambda: tyro.cli(demo, prog="python -m rebus.apps.demo")))
