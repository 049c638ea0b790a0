"""`rebus pack` and `rebus unpack`: the weights that a run of stages wrote, as a folder that `load` reads, and back."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import Positional, arg

from rebus.errors import RebusError
from rebus.packages import embedded

out = Console(highlight=False)


def pack(
    system: Positional[Annotated[str, arg(metavar="SYSTEM", help="`mini` for the shared parts, or PAPER:VARIANT")]],
    *,
    work: Annotated[Path, arg(metavar="FOLDER", help="where the stages ran")] = Path("state"),
    output: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER", help="the folder to write")],
) -> None:
    """Gather the weights of finished stages into one folder, numbers as float16."""
    gather = _module(system).pack
    variant = system.partition(":")[2]
    try:
        saved = gather(work, output, *([variant] if variant else []))
    except FileNotFoundError as error:
        raise RebusError(f"A stage of {system} has left no weights: {error}. Train it first.") from None
    sizes = [file.stat().st_size for file in output.glob("*.safetensors")]
    out.print(f"{saved.name}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB in {output}", soft_wrap=True)


def unpack(
    system: Positional[Annotated[str, arg(metavar="SYSTEM", help="`mini` for the shared parts, or PAPER:VARIANT")]],
    *,
    weights: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help="what `rebus pack` wrote (default: the embedded weights)",
            help_behavior_hint="",
        ),
    ] = None,
    work: Annotated[Path, arg(metavar="FOLDER", help="where the stages run")] = Path("state"),
) -> None:
    """Write packed weights back as the weights of their stages, so that training goes on from them."""
    written = _module(system).unpack(weights or embedded(system.replace(":", "-")), work)
    for file in written:
        out.print(file, soft_wrap=True)


def _module(system: str) -> Any:
    """The module that packs this system."""
    module = "rebus.mini.pack" if system == "mini" else f"rebus.papers.{system.partition(':')[0]}.pack"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise RebusError(
            f"There is nothing to pack for {system!r}. Name `mini`, or a system such as seed:mini."
        ) from None
