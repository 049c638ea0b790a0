"""Where the figures of a run go: a JSON-lines file and TensorBoard always, a terminal if the caller hands one in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rebus.errors import RebusError
from rebus.train.checkpointing import write_whole
from rebus.train.stage import Row

GATE = "gate/"
"""What the names of figures begin with that gates measured."""


class Reporter(Protocol):
    """What `fit` tells whoever watches."""

    def start(self, name: str, table: list[Row], step: int, steps: int) -> None:
        """A run begins, or goes on, at `step` of `steps`."""

    def step(self, step: int) -> None:
        """`step` steps are done."""

    def record(self, values: Mapping[str, float]) -> None:
        """Figures, with their `step` among them."""

    def note(self, text: str) -> None:
        """Something a user may want to know."""

    def close(self) -> None:
        """The run is over, well or not."""


class Silent:
    """Tells nobody."""

    def start(self, name: str, table: list[Row], step: int, steps: int) -> None: ...
    def step(self, step: int) -> None: ...
    def record(self, values: Mapping[str, float]) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines(Silent):
    """One line of text per record: for runs without a terminal. `write` gets each line (the apps hand in `print`)."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.steps = 0

    def start(self, name: str, table: list[Row], step: int, steps: int) -> None:
        self.steps = steps
        for row in table:
            self.write(f"{name}: {row.pattern}  tensors {row.tensors}  parameters {row.parameters:,}  lr {row.lr:g}")
        self.write(f"{name}: step {step} of {steps}")

    def record(self, values: Mapping[str, float]) -> None:
        self.write(f"step {values['step']}/{self.steps}  {figures(values)}")

    def note(self, text: str) -> None:
        self.write(text)


class Rich(Silent):
    """A progress bar and a table on a rich console."""

    def __init__(self, console: Any = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )

    def start(self, name: str, table: list[Row], step: int, steps: int) -> None:
        from rich.table import Table

        shown = Table("what", "tensors", "parameters", "learning rate", title=name)
        for row in table:
            shown.add_row(row.pattern, str(row.tensors), f"{row.parameters:,}", f"{row.lr:g}" if row.lr else "–")
        self.progress.console.print(shown)
        self.task = self.progress.add_task(name, total=steps, completed=step, figures="")
        self.progress.start()

    def step(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def record(self, values: Mapping[str, float]) -> None:
        if "lr" in values:
            self.progress.update(self.task, figures=f"loss {values['loss']:.4g}  {values['samples_per_second']:.3g}/s")
        else:
            self.note(f"step {values['step']}  {figures(values)}")

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def figures(values: Mapping[str, float]) -> str:
    """The values of a record but its step, in one line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "step")


class Journal:
    """The run's `log.jsonl`, and TensorBoard files in `tensorboard/` where that package is installed.

    What an unfinished run logged after the checkpoint at `step` is dropped, since it will be logged again. Of several
    processes the first alone writes.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        self.path, self.writes = folder / "log.jsonl", writes
        kept = [r for r in read_journal(self.path) if r["step"] <= step]
        self.evals: dict[str, float] = {}
        self.evaluated: set[float] = set()
        for record in kept:
            self.remember(record)
        self.board: Any = None
        if not writes:
            return
        write_whole(self.path, lambda file: file.write("".join(json.dumps(r) + "\n" for r in kept).encode()))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            pass
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def remember(self, values: Mapping[str, float]) -> None:
        """Note a record of evaluations, which is one without a learning rate: its step, its values as the newest. What
        gates measured is noted too, but does not stand for the evaluations."""
        if "lr" not in values:
            found = {name: value for name, value in values.items() if name != "step"}
            if not all(name.startswith(GATE) for name in found):
                self.evaluated.add(values["step"])
            self.evals.update(found)

    def record(self, values: Mapping[str, float]) -> None:
        """Append one record. Raises RebusError when the disk is full."""
        self.remember(values)
        if not self.writes:
            return
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(dict(values)) + "\n")
        except OSError as error:
            raise RebusError(
                f"{self.path} could not be written: {error}. Free some space, then start again to resume."
            ) from error
        if self.board is not None:
            for name, value in values.items():
                if name != "step":
                    self.board.add_scalar(name, value, int(values["step"]))

    def close(self) -> None:
        """Finish the TensorBoard file."""
        if self.board is not None:
            self.board.close()


def read_journal(path: Path) -> list[dict[str, float]]:
    """The records of a `log.jsonl`; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def draw_curves(folder: Path) -> Path:
    """Draw every figure of `log.jsonl` against the step into `curves.png`. Needs matplotlib (ImportError without it)."""
    from matplotlib.figure import Figure

    records = read_journal(folder / "log.jsonl")
    names = list(dict.fromkeys(name for r in records for name in r if name not in ("step", "samples")))
    columns = min(3, max(1, len(names)))
    lines = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), dpi=90)
    for at, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, at + 1)
        points = [(r["step"], r[name]) for r in records if name in r]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else "")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    figure.subplots_adjust(
        left=0.14 / columns, right=0.98, top=1 - 0.12 / lines, bottom=0.1 / lines, hspace=0.4, wspace=0.25
    )
    path = folder / "curves.png"
    write_whole(path, lambda file: figure.savefig(file, format="png"))
    return path
