"""Arms of an experiment: each is run once for every seed, kept on disk, and set beside the others.

A study names its arms and the figures that it reads; `run_arms` runs what has no record yet, so that a study goes on where it
was stopped; `table` and `plot` show all records.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rebus.errors import RebusError
from rebus.train.checkpointing import write_whole

Report = Callable[[str], None]


@dataclass(frozen=True)
class Measure:
    """A figure that every arm yields."""

    name: str
    """the key under which a run returns it"""
    title: str
    """what the table and the plot call it"""
    better: Literal["higher", "lower", ""] = "higher"
    """which direction is good; empty where neither is"""


@dataclass(frozen=True)
class Arm:
    """One way of doing it."""

    name: str
    """short, as a file name"""
    title: str
    """what it is, for the table"""
    run: Callable[[int, Path], Mapping[str, float]]
    """seed, folder for its own files → figures"""


@dataclass(frozen=True)
class Record:
    """What one arm gave with one seed."""

    arm: str
    seed: int
    figures: Mapping[str, float]
    seconds: float


def run_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    *,
    recipe: Mapping[str, Any],
    report: Report = lambda line: None,
) -> list[Record]:
    """Every arm with every seed, seed by seed, so that a study that is stopped early still compares all arms.

    Each record is `out/ARM-SEED.json`; `recipe` says how it was made. Raises RebusError when a record that is found there
    was made by another recipe.
    """
    records = []
    for seed in seeds:
        for arm in arms:
            file = out / f"{arm.name}-{seed}.json"
            made = {"arm": arm.name, "seed": seed, "recipe": json.loads(json.dumps(dict(recipe)))}
            if file.exists():
                held = json.loads(file.read_text())
                different = sorted(k for k in {*made["recipe"], *held["recipe"]} if _differ(held, made, k))
                if different:
                    raise RebusError(
                        f"{file} was measured in another way: {', '.join(different)} differ. "
                        "Name another --out, or delete the folder."
                    )
                records.append(Record(arm.name, seed, held["figures"], held["seconds"]))
                continue
            report(f"{arm.name}, seed {seed}")
            begun = time.monotonic()
            figures = {name: float(value) for name, value in arm.run(seed, out / f"{arm.name}-{seed}").items()}
            record = Record(arm.name, seed, figures, round(time.monotonic() - begun, 1))
            text = json.dumps({**made, "figures": figures, "seconds": record.seconds}, indent=1)
            write(file, text.encode())
            report(f"{arm.name}, seed {seed}: " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            records.append(record)
    return records


def write(path: Path, content: bytes) -> None:
    """A file, whole or not at all."""
    write_whole(path, lambda file: file.write(content))


def _differ(held: Mapping[str, Any], made: Mapping[str, Any], key: str) -> bool:
    return held["recipe"].get(key) != made["recipe"].get(key)


def summary(records: Sequence[Record], arm: str, name: str) -> tuple[float, float, float]:
    """Mean, lowest and highest of a figure over the seeds of an arm."""
    values = [record.figures[name] for record in records if record.arm == arm]
    return sum(values) / len(values), min(values), max(values)


def table(arms: Sequence[Arm], measures: Sequence[Measure], records: Sequence[Record]) -> str:
    """A Markdown table: a row for each arm, mean (lowest to highest) of each figure."""
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    lines = ["| arm | " + " | ".join(m.title + arrows[m.better] for m in measures) + " | seconds |"]
    lines.append("|---" * (len(measures) + 2) + "|")
    for arm in arms:
        cells = []
        for measure in measures:
            mean, low, high = summary(records, arm.name, measure.name)
            cells.append(f"{mean:.3g} ({low:.3g} to {high:.3g})")
        seconds = [record.seconds for record in records if record.arm == arm.name]
        lines.append(f"| {arm.title} | " + " | ".join(cells) + f" | {sum(seconds) / len(seconds):.0f} |")
    return "\n".join(lines)


def plot(arms: Sequence[Arm], measures: Sequence[Measure], records: Sequence[Record]) -> bytes:
    """A PNG: for each figure the arms below each other, a dot for each seed and a line at the mean."""
    from matplotlib.figure import Figure

    columns = min(3, len(measures))
    lines = -(-len(measures) // columns)
    figure = Figure(figsize=(4.4 * columns, (0.9 + 0.36 * len(arms)) * lines), dpi=110, layout="constrained")
    for at, measure in enumerate(measures):
        axes = figure.add_subplot(lines, columns, at + 1)
        for row, arm in enumerate(reversed(arms)):
            values = [record.figures[measure.name] for record in records if record.arm == arm.name]
            axes.plot(values, [row] * len(values), "o", markersize=5, alpha=0.7)
            axes.plot([sum(values) / len(values)] * 2, [row - 0.3, row + 0.3], "-", color="black", linewidth=1)
        axes.set_yticks(
            range(len(arms)), [arm.name for arm in reversed(arms)] if at % columns == 0 else [""] * len(arms)
        )
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_title(measure.title + (f" ({measure.better} is better)" if measure.better else ""), fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
