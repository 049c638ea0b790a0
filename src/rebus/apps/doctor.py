"""`rebus doctor`: what is installed, what it runs on, and what is missing, with the line that brings it."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from rebus.apps.device import choose_device
from rebus.apps.loading import variants, where_weights
from rebus.errors import RebusError
from rebus.mini.llm import BASE_LLM
from rebus.nn.precision import fast_dtype
from rebus.packages import user_cache

out = Console(highlight=False)
NAME = "rebus-lm"


@dataclass(frozen=True)
class Needed:
    """A library that this one asks for."""

    name: str
    """Its name on the package index."""
    asked: str
    """The versions that are supported."""
    found: str
    """The version that is installed; empty where there is none."""
    fits: bool
    """Whether it is one of the supported."""


def doctor() -> None:
    """Check the installation: versions, device, weights, and what is missing with the line that brings it."""
    out.print(machine_table())
    core = list(requirements(""))
    out.print("\nlibraries", style="bold")
    out.print(library_table(core))
    out.print("\nextras", style="bold")
    out.print(extras_table())
    out.print("\nweights", style="bold")
    table = Table(box=None, show_header=False)
    for name, config in variants():
        if config.weights is not None:
            table.add_row(name, where_weights(name, config))
    there = (user_cache() / BASE_LLM).exists()
    table.add_row(f"{BASE_LLM} (base)", "in the cache" if there else "fetched when it is first needed")
    out.print(table)
    if wrong := [library for library in core if not library.fits]:
        listed = ", ".join(f"{library.name} {library.found or 'missing'} (needs {library.asked})" for library in wrong)
        raise RebusError(
            f"Libraries that everything needs are missing or of another version: {listed}. Run: {pip_line('')}"
        )
    out.print("\nNothing that everything needs is missing.", style="green")


def machine_table() -> Table:
    """What it runs on."""
    table = Table(box=None, show_header=False)
    device = choose_device()
    number = str(fast_dtype(device)).removeprefix("torch.")
    table.add_row("rebus", metadata.version(NAME) + (" (a clone)" if is_clone() else ""))
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("device", f"{choose_device()}, {torch.get_num_threads()} threads, language models in {number}")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        table.add_row(f"cuda:{index}", f"{card.name}, {card.total_memory / 1e9:.0f} GB")
    cache = user_cache()
    standing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    table.add_row("cache", f"{cache} ({shutil.disk_usage(standing).free / 1e9:.0f} GB free)")
    table.add_row("npm", shutil.which("npm") or "not found: `rebus data emoji` needs it")
    return table


def library_table(libraries: list[Needed]) -> Table:
    """Versions beside those that are supported."""
    table = Table(box=None, show_header=False)
    for library in libraries:
        mark = "[green]✓[/green]" if library.fits else "[red]✗[/red]"
        table.add_row(mark, library.name, library.found or "missing", f"[dim]{library.asked}[/dim]")
    return table


def extras_table() -> Table:
    """Every extra: complete, or what it lacks and how it is installed."""
    table = Table(box=None, show_header=False)
    for extra in metadata.metadata(NAME).get_all("Provides-Extra") or []:
        lacking = [library for library in requirements(extra) if not library.fits]
        if not lacking:
            table.add_row("[green]✓[/green]", extra, "complete")
            continue
        names = ", ".join(f"{x.name} {x.found} (needs {x.asked})" if x.found else x.name for x in lacking)
        table.add_row("[yellow]–[/yellow]", extra, f"missing: {names}\n  {pip_line(extra)}".replace("[", "\\["))
    return table


def requirements(extra: str) -> Iterator[Needed]:
    """The libraries that an extra asks for, beside those that everything needs; an empty name: the latter."""
    for line in metadata.requires(NAME) or []:
        asked = Requirement(line)
        marker = asked.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if extra and (always or marker is None or not marker.evaluate({"extra": extra})):
            continue
        if not extra and not always:
            continue
        if asked.name == NAME:  # an extra made of others
            for other in sorted(asked.extras):
                yield from requirements(other)
            continue
        try:
            found = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            found = ""
        fits = bool(found) and asked.specifier.contains(found, prereleases=True)
        yield Needed(asked.name, str(asked.specifier) or "any", found, fits)


def is_clone() -> bool:
    """Whether the library is installed from a clone of its repository, to be edited."""
    try:
        return bool(
            json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")["dir_info"]["editable"]
        )
    except (LookupError, ValueError, TypeError):
        return False


def pip_line(extra: str) -> str:
    """The line that installs an extra, or what everything needs, into this Python."""
    brackets = f"[{extra}]" if extra else ""
    what = f"-c constraints.txt -e '.{brackets}'" if is_clone() else f"'{NAME}{brackets}'"
    return f"{sys.executable} -m pip install {what}"
