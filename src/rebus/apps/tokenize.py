"""`rebus tokenize`: a few pictures as codes, or shards of many as shards of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from tyro.conf import Positional, arg

from rebus.apps.bulk import Engine, given, tokenize_shards
from rebus.apps.bulk_worker import Worker
from rebus.apps.device import choose_device
from rebus.apps.files import codes_json, numbered, save_codes
from rebus.apps.loading import load_system, prepared
from rebus.apps.options import Device, Pictures, Seed, System, Weights
from rebus.apps.patches import Tokens, give_tokens, kept_over
from rebus.data.token_files import Number
from rebus.data.token_shards import Reading
from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import open_image, save_image


def tokenize(
    system: Positional[System],
    images: Positional[Pictures] = (),
    *,
    output: Annotated[
        Path | None,
        arg(
            aliases=("-o",), metavar="FILE", help="a document for the codes", help_behavior_hint="(default: print them)"
        ),
    ] = None,
    show_mask: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="a picture of the patches that are kept; several are numbered",
            help_behavior_hint="(default: none)",
        ),
    ] = None,
    shards: Annotated[
        tuple[Path, Path] | None,
        arg(
            metavar="IN OUT",
            help="a folder of tar shards of pictures, and one for shards of their tokens, which training reads; the same "
            "command goes on where a run was stopped",
            help_behavior_hint="(default: none)",
        ),
    ] = None,
    engine: Annotated[Engine, arg(help="shards: processes of this machine, or a Ray cluster")] = "local",
    address: Annotated[
        str | None,
        arg(metavar="HOST:PORT", help="shards: of the Ray cluster", help_behavior_hint="(default: one of one's own)"),
    ] = None,
    processes: Annotated[
        int | None,
        arg(
            metavar="INT",
            help="shards: processes that each hold the model",
            help_behavior_hint="(default: one a core or a GPU)",
        ),
    ] = None,
    threads: Annotated[int, arg(help="shards: threads of each process")] = 1,
    batch: Annotated[int, arg(help="shards: pictures encoded together")] = 32,
    reading: Annotated[Reading, arg(help="shards: store what a picture is read as, what it is written as, or both")] = (
        "both"
    ),
    number: Annotated[Number, arg(help="shards: number format of vectors")] = "float16",
    verify: Annotated[bool, arg(help="shards: also read the hashes of those that are there")] = False,
    seed: Seed = 0,
    tokens: Tokens = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Turn pictures into the codes that a model writes them with, or shards of pictures into shards of tokens."""
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    if shards is not None:
        if images or output is not None or show_mask is not None:
            raise RebusError(
                "With --shards the pictures come from tar files and the tokens go into tar files, but pictures, -o or "
                "--show-mask were given too. Name the ones or the others."
            )
        if min(threads, batch) < 1:
            raise RebusError(f"Shards need at least one of each: --threads {threads}, --batch {batch}. Give 1 or more.")
        source, target = shards
        prepared(system, err, weights=weights)
        worker = Worker(
            system, target.resolve(), weights, reading, number, tokens, seed, batch, str(choose_device(device)), threads
        )
        tokenize_shards(worker, source, err, engine=engine, address=address, processes=processes, verify=verify)
        return
    given(
        [
            ("--engine", engine != "local"),
            ("--address", address is not None),
            ("--processes", processes is not None),
            ("--reading", reading != "both"),
            ("--verify", verify),
        ]
    )
    if not images:
        raise RebusError(
            "No pictures were named, so there is nothing to tokenize. Name at least one file, or --shards."
        )
    opened = [Image(open_image(path)) for path in images]
    model: Any = load_system(system, err, weights=weights, device=device, parts=("tokenizer",))
    give_tokens(model, system, tokens)
    generators = [torch.Generator().manual_seed(seed) for _ in opened]
    encoded = model.tokenizer.encode(opened, {"generation"}, generators=generators)
    if show_mask is not None:
        masks = [kept_over(image, system) for image in encoded]
        for mask, file in zip(masks, numbered(show_mask, len(masks)), strict=True):
            out.print(f"saved as {save_image(mask, file)}", style="dim", soft_wrap=True)
    if output is not None:
        out.print(f"saved as {save_codes(encoded, output)}", style="dim", soft_wrap=True)
        return
    for path, part in zip(images, codes_json(encoded), strict=True):
        prefix = f"{path}: " if len(images) > 1 else ""
        out.print(prefix + " ".join(str(code) for code in part["codes"]), markup=False, soft_wrap=True)
