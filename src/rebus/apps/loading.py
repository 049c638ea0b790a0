"""Which models there are, and loading one while the terminal says what is going on."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rebus.apps.device import choose_device
from rebus.errors import RebusError


class Bar:
    """A progress bar for work that reports `(what, done, of)`; one line for each `what`. Usable as a context."""

    def __init__(self, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, of: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=of)
        self.progress.update(self.tasks[what], completed=done, total=of)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


@contextlib.contextmanager
def saying(what: str, console: Console) -> Iterator[None]:
    """Shows that something is going on, on a terminal; says nothing in a pipe."""
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def load_system(
    name: str,
    console: Console,
    *,
    weights: Path | None = None,
    device: str = "auto",
    parts: Sequence[str] = ("tokenizer", "lm", "detokenizer"),
    adapter: Path | str | None = None,
    usual: str = "",
) -> Any:
    """`rebus.system.load` on a device, with the terminal saying so. `adapter` None takes the speciality `usual` where the
    weights have it, and `none` takes none. Raises RebusError for an unknown name."""
    chosen = choose_device(device)
    name, weights = prepared(name, console, weights=weights)
    with saying(f"loading {name}", console):
        from rebus import system  # takes seconds

        if adapter is None and usual in adapters(name, weights):
            adapter = usual
        named = None if adapter == "none" else adapter
        return system.load(name, weights=weights, device=chosen, parts=tuple(parts), adapter=named)


def prepared(name: str, console: Console, *, weights: Path | None = None) -> tuple[str, Path | None]:
    """Sees to it that a system can be loaded, here or in another process; returns the name and the weights that `load`
    takes. Raises RebusError for one without weights."""
    with saying(f"loading {name}", console):
        from rebus import system  # takes seconds
        from rebus.system.pretrained import located

        found = located(name, list(system.known_systems()))
        config = next((config for known, config in variants() if known == name), None)
    if config is not None and weights is None:
        needs_no_weights(name, config)
    if found is not None:
        name, weights, base = found.name, weights or found.folder, found.config.get("language", {}).get("base")
    else:
        base = getattr(getattr(config, "language", None), "base", None)
    fetch_base(base, console)
    return name, weights


def adapters(name: str, weights: Path | None = None) -> list[str]:
    """The specialities beside the weights of a system; none for an unknown one, of which `load` says what is wrong."""
    from rebus.system import known_adapters, known_systems

    paper = name.partition(":")[0]
    return known_adapters(name, weights) if "." in paper or paper in known_systems() else []


def needs_no_weights(name: str, config: Any) -> None:
    """Raises RebusError for a published model, which would be built with billions of random numbers."""
    if config.weights is None and not name.endswith(":tiny"):
        raise RebusError(
            f"{name} has no weights in this repository, and --weights names none. Download the published ones, turn them "
            f"into a folder with `rebus convert`, and name that: --weights FOLDER."
        )


def fetch_base(base: Any, console: Console) -> None:
    """Fetches the base language model of a mini, the first time, with a bar. Any other `load` sees to."""
    from rebus.mini.llm import BASE_LLM, base_llm
    from rebus.packages import user_cache

    if base == BASE_LLM and not (user_cache() / BASE_LLM).exists():
        console.print(f"The base language model {BASE_LLM} is fetched once (about 100 MB).")
        with Bar(console) as bar:
            base_llm(user_cache(), bar)


def variants() -> Iterator[tuple[str, Any]]:
    """`name:variant` and config of every system of this library."""
    from rebus.system import known_systems

    for paper in known_systems():
        for variant, config in importlib.import_module(f"rebus.papers.{paper}").VARIANTS.items():
            yield f"{paper}:{variant}", config


def where_weights(name: str, config: Any) -> str:
    """Where the weights of a variant are, in words."""
    from rebus.packages import embedded

    if name.endswith(":tiny"):
        return "random, for tests"
    if config.weights is None:
        return "yours: --weights FOLDER"
    try:
        folder = embedded(config.weights)
    except RebusError:
        return "absent"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"embedded ({size / 1e6:.0f} MB)"


def about(name: str) -> str:
    """The first line of what a paper's package says of itself."""
    paper = importlib.import_module(f"rebus.papers.{name.partition(':')[0]}")
    return (paper.__doc__ or "").strip().split("\n", 1)[0]
