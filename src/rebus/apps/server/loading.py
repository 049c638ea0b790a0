"""The systems that are named when a server is started, loaded by name: the one place of the server where names open
anything, and none of them comes from a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rebus.apps.loading import load_system
from rebus.apps.safety import check_drawings
from rebus.errors import RebusError
from rebus.system import System


@dataclass(frozen=True)
class Named:
    """One system that a server answers for."""

    name: str
    """what requests call it: `seed:mini`, or with an adapter `seed_x:mini+edit`"""
    system: str
    """what `load` calls it"""
    weights: str | None = None
    """a folder of weights of one's own"""
    adapter: str | None = None
    """a folder that an adapter is in"""


def named(systems: Sequence[str], adapters: Sequence[str]) -> list[Named]:
    """What the command line names: `NAME:VARIANT` or `NAME:VARIANT=FOLDER`, and adapters of these as
    `NAME:VARIANT+ADAPTER=FOLDER`. Raises RebusError for what is neither, and for a name that is there twice."""
    found: dict[str, Named] = {}

    def add(one: Named) -> None:
        if one.name in found:
            raise RebusError(f"The model {one.name} is named twice. Name each once.")
        found[one.name] = one

    for text in systems:
        name, _, folder = text.partition("=")
        add(Named(name, name, folder or None))
    for text in adapters:
        name, _, folder = text.partition("=")
        base, _, adapter = name.partition("+")
        if not folder or not adapter or base not in found:
            raise RebusError(
                f"{text!r} is no adapter of the models {', '.join(found)}. Name it as MODEL+ADAPTER=FOLDER, for instance "
                f"{next(iter(found), 'seed_x:mini')}+edit=weights/edit."
            )
        add(Named(name, base, found[base].weights, folder))
    return list(found.values())


def load_named(models: Sequence[Named], console: Console, device: str, safety: Path | None = None) -> dict[str, System]:
    """The systems, loaded, by the names that requests call them by; adapters share the weights of their base. `safety` is
    the folder of a checker that looks at all that they draw."""
    systems: dict[str, System] = {}
    for one in models:
        if one.adapter is None:
            weights = None if one.weights is None else Path(one.weights)
            systems[one.name] = load_system(one.system, console, weights=weights, device=device)
            check_drawings(systems[one.name], safety)
        else:  # its base stands before it, and draws for it too
            systems[one.name] = systems[one.system].with_adapter(Path(one.adapter))
    return systems
