"""`rebus study NAME`: runs an experiment about a paper's claim and shows its table."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from rebus.errors import RebusError

FOLDER = Path(__file__).parents[1] / "studies"


def studies() -> dict[str, str]:
    """Every study by the name that `rebus study` takes → the first line of its docstring."""
    found = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        text = file.read_text(encoding="utf-8")
        if "\ndef study(" in text:
            found[file.stem.replace("_", "-")] = text.lstrip('"').split("\n", 1)[0].rstrip('"')
    return found


def studies_table() -> Table:
    """What can be asked."""
    table = Table("study", "what it asks", box=None, header_style="bold")
    for name, says in studies().items():
        table.add_row(name, says)
    return table


@dataclass(frozen=True)
class Run:
    """One call of `rebus study`, resolved."""

    name: str
    """the study"""
    options: Any
    """what the command line said"""

    def __call__(self, out: Console, err: Console) -> None:
        """Runs what is not yet on disk, a line for each thing done, then shows the table."""
        module = importlib.import_module(f"rebus.studies.{self.name.replace('-', '_')}")
        options = self.options
        if options.seeds < 1:
            raise RebusError(f"--seeds is a number of runs of each arm, but it is {options.seeds}. Give at least 1.")
        folder = options.out or options.work / f"study-{self.name}"
        more: dict[str, Any] = {}
        if options.docs is not None:
            if "docs" not in inspect.signature(module.study).parameters:
                raise RebusError(f"{self.name} writes no document, but --docs {options.docs} was given. Leave it out.")
            more["docs"] = options.docs
        said = module.study(
            options.config,
            options.work,
            folder,
            seeds=tuple(range(options.seeds)),
            report=lambda line: err.print(line, markup=False, highlight=False, soft_wrap=True),
            **more,
        )
        out.print(said, markup=False, highlight=False, soft_wrap=True)
        out.print(f"saved in {folder}", style="dim", soft_wrap=True)


def parse(name: str, args: Sequence[str], prog: str = "rebus study") -> Run:
    """The options of one study: the fields of its config, and where and how often to run.

    Raises RebusError for a name that is no study.
    """
    known = studies()
    if name not in known:
        raise RebusError(f"There is no study {name!r}. The studies are {', '.join(known)}.")
    module = importlib.import_module(f"rebus.studies.{name.replace('-', '_')}")

    def options(
        config: Annotated[module.Config, arg(name="")] = module.Config(),  # type: ignore[name-defined]  # noqa: B008
        *,
        work: Annotated[Path, arg(metavar="FOLDER", help="where the stages that it builds on lie")] = Path("state"),
        out: Annotated[
            Path | None, arg(metavar="FOLDER", help="where it writes", help_behavior_hint="(default: WORK/study-NAME)")
        ] = None,
        seeds: Annotated[int, arg(help="runs of each arm")] = 3,
        docs: Annotated[
            Path | None,
            arg(metavar="FOLDER", help="where its document goes as well", help_behavior_hint="(default: nowhere)"),
        ] = None,
    ) -> argparse.Namespace:
        return argparse.Namespace(config=config, work=work, out=out, seeds=seeds, docs=docs)

    options.__doc__ = known[name]
    options.__annotations__["config"] = Annotated[module.Config, arg(name="")]
    return Run(name, tyro.cli(options, prog=f"{prog} {name}", args=list(args)))
