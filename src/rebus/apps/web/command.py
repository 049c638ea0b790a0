"""`rebus web`: serves the page."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from rebus.apps.options import Device, Weights
from rebus.apps.safety import Safety
from rebus.apps.web.models import Models
from rebus.errors import RebusError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Systems = Annotated[
    tuple[str, ...],
    arg(metavar="[SYSTEM …]", help="which models are offered", help_behavior_hint="(default: every mini)"),
]
Adapters = Annotated[
    tuple[str, ...],
    arg(
        metavar="[NAME=FOLDER …]",
        help="more adapters that may be chosen",
        help_behavior_hint="(default: those beside weights)",
    ),
]


def web(
    systems: Positional[Systems] = (),
    *,
    adapters: Adapters = (),
    host: Annotated[str, arg(metavar="HOST", help="0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[
        int | None, arg(metavar="PORT", help="where it is served", help_behavior_hint="(default: free from 7860)")
    ] = None,
    show: Annotated[bool, arg(help="open a browser on it")] = False,
    examples: Annotated[Path, arg(metavar="FOLDER", help="pictures to try")] = Path("examples"),
    safety: Safety = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Serve a page: talk in words and pictures, and look into a picture's tokens."""
    models = Models(
        systems, adapters=named_folders(adapters), weights=weights, safety=safety, device=device, console=err
    )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is reported to anyone
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from rebus.apps.web.page import build_page, launch
    except ModuleNotFoundError as error:
        raise RebusError(
            f"The page needs the package {error.name}, which is not installed. Install it: pip install 'rebus-lm[demo]', "
            "or in a clone of the repository: make web"
        ) from None
    with tempfile.TemporaryDirectory(prefix="rebus-web-") as folder:
        page = build_page(models, examples=examples, folder=Path(folder))
        try:
            address = launch(page, host=host, port=port, show=show, wait=False)
        except OSError:
            raise RebusError(f"Port {port} of {host} cannot be used. Name another one with --port.") from None
        out.print(f"The page is at [bold]{address}[/bold]  (Ctrl-C ends it)")
        page.block_thread()


def named_folders(given: tuple[str, ...]) -> dict[str, Path]:
    """`edit=FOLDER` → name and folder. Raises RebusError for another form, and for folders that are not there."""
    found = {}
    for one in given:
        name, mark, folder = one.partition("=")
        if not name or not mark or not Path(folder).is_dir():
            raise RebusError(f"An adapter is named NAME=FOLDER with a folder that is there, but this one is {one!r}.")
        found[name] = Path(folder)
    return found
