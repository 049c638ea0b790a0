"""The command line, `rebus VERB …`: one function a verb, whose signature is its options and whose docstring its help.

Bad input ends in one red line and exit code 2, never in a traceback (`--traceback` shows it all the same).
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rebus.apps import studies, training
from rebus.apps.boxes import with_boxes
from rebus.apps.chat import Chat
from rebus.apps.convert import convert, export
from rebus.apps.data import data
from rebus.apps.device import choose_device
from rebus.apps.doctor import doctor
from rebus.apps.edit import edit
from rebus.apps.files import numbered, read_codes
from rebus.apps.guard import guarded
from rebus.apps.loading import about, load_system, variants, where_weights
from rebus.apps.memory import save_drawing
from rebus.apps.options import (
    Adapter,
    BestOf,
    Device,
    MaxTokens,
    Picture,
    Seed,
    Steps,
    System,
    Temperature,
    Weights,
    not_empty,
)
from rebus.apps.packing import pack, unpack
from rebus.apps.patches import Tokens, give_tokens
from rebus.apps.plan import plan_system
from rebus.apps.replay import replay
from rebus.apps.safety import Safety, check_drawings
from rebus.apps.server.verb import serve
from rebus.apps.terminal import keep_in, show
from rebus.apps.tokenize import tokenize
from rebus.apps.web.command import web
from rebus.apps.wording import drawing_request
from rebus.document import Box, Document, Image, user
from rebus.errors import RebusError
from rebus.images import open_image, save_image
from rebus.sampling import Sampling
from rebus.system import reply
from rebus.visual import Codes, ImageSampling

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


# ------------------------------------------------------------------------------------------------ the verbs


def list_systems() -> None:
    """List the models there are, and where their weights come from."""
    table = Table("model", "weights", "what it is", box=None, header_style="bold")
    said = ""
    for name, config in variants():
        says = about(name)
        table.add_row(name, where_weights(name, config), says if says != said else "")  # once for each paper
        said = says
    out.print(table)
    out.print("\nTry one:  rebus chat seed:mini", style="dim")


def chat(
    system: Positional[System] = "seed:mini",
    *,
    folder: Annotated[Path, arg(metavar="FOLDER", help="where the pictures that the model draws are saved")] = Path(
        "rebus-chat"
    ),
    seed: Seed = 0,
    temperature: Temperature = 0.7,
    max_tokens: MaxTokens = 256,
    tokens: Tokens = None,
    safety: Safety = None,
    adapter: Adapter = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Talk with a model in words and pictures."""
    model = load_system(system, err, weights=weights, device=device, adapter=adapter, usual="chat")
    check_drawings(model, safety)
    give_tokens(model, system, tokens)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_tokens)
    generator = torch.Generator().manual_seed(seed)
    if sys.stdin.isatty():
        import readline  # noqa: F401  the arrow keys and a history, for as long as the chat lasts
    Chat(model, out, folder, generator, sampling).run(lambda: out.input("[bold blue]you ›[/bold blue] "))


def see(
    image: Positional[Picture],
    question: Positional[
        Annotated[str, arg(metavar="QUESTION", help="what to ask about it")]
    ] = "What is in this picture?",
    *,
    system: System = "seed:mini",
    seed: Seed = 0,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 128,
    tokens: Tokens = None,
    boxes: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="the picture with what was pointed at drawn in it",
            help_behavior_hint="(default: none)",
        ),
    ] = None,
    adapter: Adapter = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Ask a question about a picture."""
    pixels = open_image(image)
    asked = Document((user(Image(pixels), not_empty(question, "question")),))
    seeing = ("tokenizer", "lm")
    model = load_system(system, err, weights=weights, device=device, parts=seeing, adapter=adapter, usual="chat")
    give_tokens(model, system, tokens)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_tokens)
    generator = torch.Generator().manual_seed(seed)
    said = show(model.stream(asked, modality="text", sampling=sampling, generator=generator), out, keep_in(Path()))
    if boxes is not None:
        pointed = [part for part in said if isinstance(part, Box)]
        if not pointed:
            raise RebusError(f'{system} pointed at nothing. Ask for something that can be seen: "Where is the cat?"')
        out.print(f"saved as {save_image(with_boxes(pixels, pointed), boxes)}", style="dim", soft_wrap=True)


def draw(
    text: Positional[Annotated[str, arg(metavar="TEXT", help="what to draw")]],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE", help="the picture file to write")] = Path(
        "drawing.png"
    ),
    style: Annotated[
        str | None,
        arg(
            metavar="STYLE",
            help="in which manner, such as noto, fluent or twemoji",
            help_behavior_hint="(default: any)",
        ),
    ] = None,
    system: System = "seed:mini",
    seed: Seed = 0,
    steps: Steps = None,
    temperature: Temperature = 0.0,
    best_of: BestOf = 1,
    safety: Safety = None,
    adapter: Adapter = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Draw a picture from words."""
    wish = drawing_request(not_empty(text, "text"), style)
    if best_of > 1 and not temperature:
        raise RebusError(
            f"The best of {best_of} drawings was asked for, but at temperature 0 they are all the same. "
            "Give a --temperature above 0, such as 0.8."
        )
    drawing = ("lm", "detokenizer")
    model = load_system(system, err, weights=weights, device=device, parts=drawing, adapter=adapter, usual="chat")
    check_drawings(model, safety)
    sampling = Sampling(temperature=temperature, best_of=best_of, image=ImageSampling(steps=steps))
    generator = torch.Generator().manual_seed(seed)
    stream = reply(model, Document((user(wish),)), modality="image", sampling=sampling, generator=generator)
    drawn = [part for part in show(stream, out, lambda image: save_drawing(image, output)) if isinstance(part, Image)]
    if not drawn or drawn[-1].pixels is None:
        raise RebusError(f"{system} drew nothing for {text!r}. Try other words or another --seed.")


def detokenize(
    system: Positional[System],
    codes: Positional[
        Annotated[str, arg(metavar="CODES", help="a document that `rebus tokenize` wrote, or the codes in quotes")]
    ],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FILE", help="the picture file; several are numbered")] = Path(
        "decoded.png"
    ),
    seed: Seed = 0,
    steps: Steps = None,
    safety: Safety = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Turn codes back into pictures."""
    tokens = read_codes(codes)
    model = load_system(system, err, weights=weights, device=device, parts=("detokenizer",))
    check_drawings(model, safety)
    # codes that were typed say nothing of the tokenizer that wrote them
    tokens = [Codes(token.ids_N, token.source or model.grammar.source) for token in tokens]
    images = [Image(generated=token) for token in tokens]
    generators = [torch.Generator().manual_seed(seed) for _ in tokens]
    stream = model.draw(images, [None] * len(tokens), generators, ImageSampling(steps=steps))
    saved = iter(numbered(output, len(tokens)))
    show(stream, out, lambda image: save_drawing(image, next(saved)))


def train(
    stage: Positional[
        Annotated[str, arg(metavar="STAGE", help="which stage", help_behavior_hint="(none: list them)")]
    ] = "",
) -> None:
    """Run one stage of training, or go on with it; `rebus train STAGE --help` lists its options."""
    out.print(training.stages_table())
    out.print("\nThe options of one:  rebus train STAGE --help", style="dim")


def study(
    name: Positional[
        Annotated[str, arg(metavar="STUDY", help="which study", help_behavior_hint="(none: list them)")]
    ] = "",
) -> None:
    """Ask whether a paper's claim holds, or go on with it; `rebus study STUDY --help` lists its options."""
    out.print(studies.studies_table())
    out.print("\nThe options of one:  rebus study STUDY --help", style="dim")


def measure() -> None:
    """Measure a model: figures beside chance and ceiling, a table, picture sheets."""
    from rebus.apps.evaluate import eval_system  # `parse` puts it here when it is asked for: importing takes seconds

    eval_system()


def version() -> None:
    """Say what is installed and what it runs on."""
    table = Table(box=None, show_header=False)
    for name in ("rebus-lm", "torch", "transformers", "diffusers", "peft", "pillow"):
        table.add_row(name, metadata.version(name))
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("device", f"{choose_device()}, {torch.get_num_threads()} threads")
    from rebus.packages import user_cache

    table.add_row("cache", str(user_cache()))
    out.print(table)


VERBS: dict[str, Callable[..., None]] = {
    "chat": chat,
    "see": see,
    "draw": draw,
    "edit": edit,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "replay": replay,
    "web": web,
    "list": list_systems,
    "data": data,
    "train": train,
    "pack": pack,
    "unpack": unpack,
    "convert": convert,
    "export": export,
    "eval": measure,
    "study": study,
    "serve": serve,
    "plan": plan_system,
    "doctor": doctor,
    "version": version,
}


# ------------------------------------------------------------------------------------------------ main


def parse(args: Sequence[str]) -> Callable[[], Any]:
    """The command line as a call that is yet to be made. Wrong options end the program with the usage and code 2."""
    if len(args) > 1 and args[0] == "train" and not args[1].startswith("-"):
        return functools.partial(training.parse(args[1], args[2:]), out, err)
    if len(args) > 1 and args[0] == "study" and not args[1].startswith("-"):
        return functools.partial(studies.parse(args[1], args[2:]), out, err)

    verbs = dict(VERBS)
    if args[:1] == ["eval"]:
        from rebus.apps.evaluate import eval_system

        verbs["eval"] = eval_system

    def later(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
        @functools.wraps(verb)
        def bind(*given: Any, **options: Any) -> Callable[[], None]:
            return functools.partial(verb, *given, **options)

        return bind

    return tyro.extras.subcommand_cli_from_dict(
        {name: later(verb) for name, verb in verbs.items()},
        prog="rebus",
        description="Models that read and write documents of words and pictures.",
        args=list(args) or ["--help"],
    )


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for bad input, 1 for a fault of our own."""
    args = list(sys.argv[1:] if args is None else args)
    words = [word for word in args if word != "--traceback"]
    return guarded(lambda: parse(words)(), with_traceback="--traceback" in args)


if __name__ == "__main__":
    sys.exit(main())
