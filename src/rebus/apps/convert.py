"""`rebus convert` and `rebus export`: published weights become a folder that `load` reads, and go back."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rebus.errors import RebusError

out = Console(highlight=False)

DECODER_FILES = ("*.json", "*.txt", "*/diffusion_pytorch_model.*", "text_encoder/*")
"""What is fetched of an image decoder's repository: not its weights in other formats and sizes."""


def convert(
    system: Positional[Annotated[str, arg(metavar="SYSTEM", help="the published model: seed:v2-8b, for instance")]],
    source: Positional[Annotated[Path, arg(metavar="FOLDER", help="where the published files lie, in any subfolders")]],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER", help="the folder to write")],
    decoder: Annotated[
        str | None,
        arg(
            metavar="FOLDER|ID",
            help="the image decoder: a folder in the layout of diffusers, or its id on the hub",
            help_behavior_hint="(default: what lies in FOLDER, or none)",
        ),
    ] = None,
    mirror: Annotated[
        str | None, arg(metavar="URL", help="where the hub id is fetched from", help_behavior_hint="(default: the hub)")
    ] = None,
    sha256: Annotated[
        tuple[str, ...],
        arg(metavar="FILE=DIGEST", help="checksums of fetched files", help_behavior_hint=""),
    ] = (),
    ignore_unexpected: Annotated[
        tuple[str, ...],
        arg(metavar="PATTERN", help="published tensors that may stay without a place", help_behavior_hint=""),
    ] = (),
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        arg(help="what numbers are stored as", help_behavior_hint="(default: as published)"),
    ] = None,
    overwrite: Annotated[bool, arg(help="replace what is at the output folder")] = False,
) -> None:
    """Turn published weights into a folder that this library loads."""
    paper, _, variant = system.partition(":")
    saved = _module(paper, "published").convert_folder(
        source,
        output,
        variant,
        decoder=None if decoder is None else decoder_folder(decoder, mirror, sha256),
        ignore_unexpected=ignore_unexpected,
        dtype=None if dtype is None else getattr(torch, dtype),
        overwrite=overwrite,
    )
    table = Table("part", "tensors", "left out, and why", box=None, header_style="bold")
    for part in saved.files:
        reasons = Counter(saved.dropped.get(part, {}).values())
        said = [f"{count}: {reason}" for reason, count in reasons.items()]
        said += [f"{len(names)}: let pass on request" for names in [saved.ignored.get(part, [])] if names]
        weights = any(name.endswith(".safetensors") for name in saved.files[part])
        table.add_row(part, f"{len(saved.tensors(part)):,}" if weights else "", "\n".join(said))
    out.print(table)
    out.print(f"\n{saved.name} is in {output}. Load it with `weights=`.", soft_wrap=True)


def export(
    weights: Positional[
        Annotated[
            str, arg(metavar="FOLDER", help="a folder of weights; with --layout hub also a model of `rebus list`")
        ]
    ],
    *,
    output: Annotated[Path, arg(aliases=("-o",), metavar="FOLDER", help="the folder to write")],
    layout: Annotated[
        Literal["published", "hub"],
        arg(help="the paper's own files for other software, or one folder that stands alone, with a model card"),
    ] = "published",
    report: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help="hub: what `rebus eval` wrote; its figures go into the card",
            help_behavior_hint="(default: none)",
        ),
    ] = None,
    licence: Annotated[str, arg(metavar="NAME", help="hub: the licence that the card names")] = "other",
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        arg(help="hub: what numbers are stored as", help_behavior_hint="(default: as they are held)"),
    ] = None,
) -> None:
    """Write a model for other software, in the published layout, or for the hub, as one folder."""
    if layout == "hub":
        from rebus.apps.loading import load_system as load_parts

        number = None if dtype is None else getattr(torch, dtype)
        model = load_parts(weights, Console(stderr=True, highlight=False), device="cpu")
        model.save_pretrained(output, report=report, licence=licence, dtype=number)
    else:
        from rebus.checkpoint import load_system

        if ":" in str(weights) and not Path(weights).exists():
            raise RebusError(
                f"{weights} is the name of a model, and the published layout is written from a folder of weights. Give "
                "the folder, or add --layout hub, which takes names too."
            )
        _module(load_system(weights).name.partition(":")[0], "export").export_published(Path(weights), output)
    out.print(f"written to {output}", soft_wrap=True)


def decoder_folder(name: str, mirror: str | None, checksums: tuple[str, ...]) -> Path:
    """The image decoder's folder: one that is there, or else a repository of the hub, fetched and checked."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise RebusError(
            f"There is no folder {name}, and it is no id of the hub either. Give a folder or `owner/name`."
        )
    pairs = [pair.partition("=") for pair in checksums]
    if wrong := [file for file, _, digest in pairs if len(digest) != 64]:
        raise RebusError(f"The checksum of {wrong[0]} is not 64 digits. Write it as FILE=DIGEST.")
    from rebus.checkpoint.hub import HubFolder, hub_folder

    digests = {file: digest for file, _, digest in pairs}
    return hub_folder(HubFolder(name, mirror=mirror, files=DECODER_FILES, digests=digests))


def _module(paper: str, name: str) -> Any:
    """`papers/<paper>/published.py` or `export.py`."""
    dotted = f"rebus.papers.{paper}.{name}"
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{dotted}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it needs is not
        raise RebusError(
            f"Nothing is published that {paper!r} could be converted from or to. Name a model of `rebus list`."
        ) from None
