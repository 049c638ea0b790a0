"""`rebus pack`: the weights that a run of stages wrote, as a folder that `load` reads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from rebus.errors import RebusError

out = Console(highlight=False)


def pack(
    system: Positional[Annotated[str, arg(metavar="SYSTEM", help="`mini` for the shared parts, or PAPER:VARIANT")]],
    *,
    work: Annotated[Path, arg(metavar="FOLDER", help="where the stages ran")] = Path("state"),
    output: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER", help="the folder to write")],
) -> None:
    """Gather the weights of finished stages into one folder, numbers as float16."""
    paper, _, variant = system.partition(":")
    module = "rebus.mini.pack" if system == "mini" else f"rebus.papers.{paper}.pack"
    try:
        gather = importlib.import_module(module).pack
    except ModuleNotFoundError:
        raise RebusError(
            f"There is nothing to pack for {system!r}. Name `mini`, or a system such as seed:mini."
        ) from None
    try:
        saved = gather(work, output, *([variant] if variant else []))
    except FileNotFoundError as error:
        raise RebusError(f"A stage of {system} has left no weights: {error}. Train it first.") from None
    sizes = [file.stat().st_size for file in output.glob("*.safetensors")]
    out.print(f"{saved.name}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB in {output}", soft_wrap=True)
