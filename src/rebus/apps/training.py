"""`rebus train STAGE`: finds the stage's file, makes its config the options of the command line, and runs it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from rebus.apps.processes import joined
from rebus.errors import RebusError

PACKAGE = Path(__file__).parents[1]


def stages() -> dict[str, str]:
    """Every stage by the name that `rebus train` takes → the first line of its docstring."""
    files = {f"{file.parts[-3]}.{file.stem}": file for file in sorted(PACKAGE.glob("papers/*/stages/[!_]*.py"))}
    files |= {f"mini.{file.stem}": file for file in sorted(PACKAGE.glob("mini/[!_]*.py"))}
    found = {}
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")
        if "\ndef stage(" in text:
            found[name] = text.lstrip('"').split("\n", 1)[0].rstrip('"')
    return found


def stages_table() -> Table:
    """What can be trained."""
    table = Table("stage", "what it trains", box=None, header_style="bold")
    for name, says in stages().items():
        table.add_row(name, says)
    return table


def find_stage(name: str) -> ModuleType:
    """The module of a stage: `seed.stage1_qformer`, `mini.vae`, or the dotted name of any module of one's own.

    Raises RebusError for an unknown name and for a module that is no stage.
    """
    known = stages()
    paper, _, last = name.rpartition(".")
    inside = f"rebus.mini.{last}" if paper == "mini" else f"rebus.papers.{paper}.stages.{last}"
    dotted = inside if name in known else name
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not (dotted + ".").startswith(error.name + "."):
            raise  # the stage is there, and something that it imports is not
        raise RebusError(f"There is no stage {name!r}. The stages are {', '.join(known)}.") from None
    missing = [part for part in ("Config", "CONFIGS", "stage") if not hasattr(module, part)]
    if missing:
        raise RebusError(
            f"{dotted} is no stage: it has no {' and no '.join(missing)}. The stages are {', '.join(known)}."
        )
    return module


@dataclass(frozen=True)
class Run:
    """One call of `rebus train`, resolved."""

    name: str
    """the stage"""
    module: ModuleType
    """its file"""
    options: Any
    """what the command line said"""

    def __call__(self, out: Console, err: Console) -> None:
        """Trains, showing a bar where there is a terminal and lines where there is none. Under torchrun as one of several
        processes, of which the first shows it.

        Raises RebusError if the run was stopped before its end, so that a script of several stages stops too.
        """
        with joined(self.options.device) as device:
            self._train(device, out, err)

    def _train(self, device: torch.device, out: Console, err: Console) -> None:
        from rebus.train import Layout, fit, parallel
        from rebus.train.log import Lines, Rich

        options = self.options
        names = [parameter.name for parameter in _stage_parameters(self.module)]
        stage = self.module.stage(options.config, **{name: getattr(options, name) for name in names})
        if (steps := getattr(options, "steps", None)) is not None:
            stage.optim = dataclasses.replace(stage.optim, steps=steps)
        result = fit(
            stage,
            options.out,
            device=device,
            seed=getattr(options, "seed", getattr(options.config, "seed", 0)),
            log_every=options.log_every,
            eval_every=options.eval_every,
            save_every=options.save_every,
            resume=options.resume,
            progress=Rich(err)
            if err.is_terminal
            else Lines(lambda line: out.print(line, markup=False, highlight=False, soft_wrap=True)),
            layout=Layout(options.parallel, options.recompute),
        )
        if result.fell:
            raise RebusError(
                f"{self.name} was stopped at step {result.step}, since {result.fell}. The last good weights are in "
                f"{result.weights}; go on from these with other settings in another folder."
            )
        if not result.finished:
            raise RebusError(f"{self.name} was stopped at step {result.step}. The same command goes on from there.")
        if parallel.main_process():
            out.print(
                f"{self.name}: {result.step} steps done, weights in {result.weights}", highlight=False, soft_wrap=True
            )


def parse(name: str, args: Sequence[str], prog: str = "rebus train") -> Run:
    """The options of one stage: the fields of its config, what else its `stage` takes, and where and how to run."""
    module = find_stage(name)
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    chosen.add_argument("--config", default="mini" if "mini" in module.CONFIGS else next(iter(module.CONFIGS)))
    try:
        which, rest = chosen.parse_known_args(list(args))
    except argparse.ArgumentError as error:
        raise RebusError(f"{error.message}: --config. Name one of {', '.join(module.CONFIGS)}.") from None
    if which.config not in module.CONFIGS:
        raise RebusError(f"{name} has no config {which.config!r}. Its configs are {', '.join(module.CONFIGS)}.")
    about = (module.__doc__ or "").partition("Dimension key")[0].strip()
    about += f"\n\n--config NAME starts from one of {', '.join(module.CONFIGS)} (here: {which.config})."
    options = tyro.cli(
        _options(module, name, module.CONFIGS[which.config]),
        prog=f"{prog} {name}",
        description=about,
        args=rest,
        config=(tyro.conf.AvoidSubcommands,),  # a field of several types keeps the one that its default has
    )
    return Run(name, module, options)


def _stage_parameters(module: ModuleType) -> list[inspect.Parameter]:
    """What a stage takes besides its config."""
    return list(inspect.signature(module.stage).parameters.values())[1:]


def _options(module: ModuleType, name: str, config: Any) -> Callable[..., Any]:
    """A dataclass whose fields are the options, made for one stage."""
    taken = {field.name for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(module.stage, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []

    def option(name: str, kind: Any, default: Any, says: str) -> None:
        metavar = "INT" if kind == int | None else None
        if name not in taken:
            held = Annotated[kind, tyro.conf.arg(help=says, metavar=metavar)]
            fields.append((name, held, dataclasses.field(default=default)))

    for parameter in _stage_parameters(module):
        default = tyro.MISSING if parameter.default is parameter.empty else parameter.default
        option(parameter.name, hints[parameter.name], default, "what the stage needs besides its config")
    option("out", Path, Path("state") / name, "folder of the run: checkpoints, weights, logs; a run in it goes on")
    option("steps", int | None, None, "optimiser steps of the whole run; none: as the config says")
    option("device", str, "auto", "cpu, cuda, mps, or auto for the best that is there")
    option("seed", int, 0, "of everything random that the config does not seed itself")
    option("log_every", int, 10, "steps between records of the log")
    option("eval_every", int | None, None, "steps between evaluations; none: only at the end")
    option("save_every", int, 500, "steps between checkpoints")
    option("resume", bool, True, "go on with a run that the folder holds")
    option(
        "parallel",
        Literal["ddp", "fsdp"],
        "ddp",
        "under torchrun: every process holds the whole model (ddp), or a shard of it (fsdp)",
    )
    option("recompute", bool, False, "activation checkpointing: less memory, about a third more time")
    own = ("config", Annotated[type(config), tyro.conf.arg(name="")], dataclasses.field(default=config))
    return dataclasses.make_dataclass("Options", [*fields, own], kw_only=True)
