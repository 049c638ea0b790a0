"""`rebus eval SYSTEM`: puts a system through the tasks of `rebus.evals` and writes a report."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from rebus.apps.device import choose_device
from rebus.apps.loading import Bar, load_system
from rebus.apps.options import Adapter, Weights
from rebus.data.pictures import load_pictures
from rebus.errors import RebusError
from rebus.evals.exam import EvalConfig
from rebus.evals.figures import Figure
from rebus.evals.report import number, write_report
from rebus.evals.run import TASKS, evaluate
from rebus.evals.standard import standard_exam
from rebus.packages import user_cache
from rebus.sampling import Sampling

PACKAGE = Path(__file__).parents[1]
_DEFAULTS = EvalConfig()

System = Annotated[str, arg(metavar="SYSTEM", help="which model: NAME:VARIANT, as `rebus list` shows them")]
Names = Annotated[
    tuple[str, ...],
    arg(metavar="TASK [TASK …]", help=f"which of {', '.join(TASKS)}", help_behavior_hint="(default: all)"),
]
Split = Annotated[
    Literal["val", "train", "pairs", "concepts"],
    arg(help="which pictures; pairs and concepts are for figures that are published, not for tuning"),
]


def eval_system(
    system: Positional[System] = "seed:mini",
    *,
    tasks: Names = tuple(TASKS),
    split: Split = "val",
    n: Annotated[int, arg(help="items of each task; 24 for a quick look")] = _DEFAULTS.n,
    seeds: Annotated[int, arg(help="sampling seeds; every figure is a mean over them")] = len(_DEFAULTS.seeds),
    names: Annotated[int, arg(help="among how many names a drawing must be recognised")] = _DEFAULTS.names,
    codebook_n: Annotated[int, arg(help="most pictures that are read to see which codes are used")] = (
        _DEFAULTS.codebook_n
    ),
    temperature: Annotated[float, arg(metavar="NUMBER", help="of words and codes; 0 takes the likeliest")] = (
        _DEFAULTS.temperature
    ),
    top_p: Annotated[
        float, arg(metavar="NUMBER", help="draw from the likeliest words and codes that together are this probable")
    ] = _DEFAULTS.top_p,
    guidance: Annotated[
        float, arg(metavar="NUMBER", help="guidance of the words of images that are drawn; 1 is off")
    ] = _DEFAULTS.guidance,
    best_of: Annotated[
        int, arg(help="drawings written for each wish, of which the one that the model itself best recognises is taken")
    ] = _DEFAULTS.best_of,
    steps: Annotated[
        int | None, arg(metavar="INT", help="denoising steps of a picture", help_behavior_hint="(default: the model's)")
    ] = None,
    batch: Annotated[int, arg(help="documents answered side by side")] = _DEFAULTS.batch,
    choice: Annotated[int, arg(help="seed of which pictures are asked about")] = _DEFAULTS.choice,
    data: Annotated[Path, arg(metavar="FOLDER", help="the pictures, as `rebus data emoji` built them")] = Path(
        "state/emoji"
    ),
    output: Annotated[
        Path | None,
        arg(
            aliases=("-o",),
            metavar="FOLDER",
            help="where the report goes",
            help_behavior_hint="(default: rebus-eval/SYSTEM-SPLIT)",
        ),
    ] = None,
    adapter: Adapter = None,
    weights: Weights = None,
    device: Annotated[str, arg(metavar="DEVICE", help="cpu, cuda, mps, or auto for the best that is there")] = "auto",
) -> None:
    """Measure a model: figures beside chance and ceiling, a table, picture sheets."""
    for name, value in {
        "n": n,
        "seeds": seeds,
        "names": names,
        "batch": batch,
        "codebook-n": codebook_n,
        "best-of": best_of,
    }.items():
        if value < 1:
            raise RebusError(f"--{name} is a number of things to count, but it is {value}. Give at least 1.")
    if best_of > 1 and temperature == 0:
        raise RebusError(
            f"The best of {best_of} drawings was asked for, but with temperature 0 they are all the same. Raise the "
            "temperature, or leave --best-of at 1."
        )
    Sampling(
        temperature=temperature, top_p=top_p, guidance=guidance
    )  # refuses what cannot be before anything is measured
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    config = dataclasses.replace(
        _DEFAULTS,
        split=split,
        n=n,
        seeds=tuple(range(seeds)),
        names=names,
        codebook_n=codebook_n,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        best_of=best_of,
        steps=steps,
        batch=batch,
        choice=choice,
    )
    pictures = load_pictures(data)
    model = load_system(system, err, weights=weights, device=device, adapter=adapter, usual="chat")
    recipe = {
        "system": system,
        "adapter": model.adapter,
        "command": command(),
        "device": str(choose_device(device)),
        **version(),
    }
    with Bar(err) as bar:
        exam = standard_exam(model, pictures, config, user_cache(), device=choose_device(device), report=bar)
        results = evaluate(exam, tasks, recipe)
    folder = output or Path("rebus-eval") / f"{system.replace(':', '-').replace('/', '-')}-{split}"
    write_report(results, folder)
    out.print(figures_table(results.figures))
    for task, why in results.left_out.items():
        out.print(f"left out: {task}: {why}", style="dim", soft_wrap=True)
    out.print(f"saved in {folder}", style="dim", soft_wrap=True)


def figures_table(figures: list[Figure]) -> Table:
    """The figures for a terminal."""
    table = Table("figure", "value", "range", "chance", "shuffled", "ceiling", "n", box=None, header_style="bold")
    for f in figures:
        spread = f"{number(f.low)} … {number(f.high)}" if len(f.runs) > 1 else "one run"
        table.add_row(
            f.name, number(f.value), spread, number(f.chance), number(f.shuffled), number(f.ceiling), str(f.n)
        )
    return table


def command() -> str:
    """What was typed, without the path of the program."""
    return " ".join(["rebus", *sys.argv[1:]])


def version() -> dict[str, Any]:
    """The commit that this code is of, where it is run from a repository, and what it runs on."""
    asked = {"commit": ("rev-parse", "HEAD"), "changed": ("status", "--porcelain", "--untracked-files=no")}
    said = {}
    for name, words in asked.items():
        try:
            done = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            said[name] = done.stdout.strip()
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    if "commit" in said:
        found["commit"] = said["commit"] + (" with uncommitted changes" if said.get("changed") else "")
    return found
