"""Gates: abilities that a run must not lose. A few figures are measured at intervals; when one falls too far, the run stops,
or only says so, and the last good weights are kept.

    stage.gates = [Gate(battery, every=100, margins={"caption": Margin(0.2), "perplexity": Margin(0.3, "lower", relative=True)})]

What was measured stands in the run's log under `gate/…`, which is also what later measurements are held against; so a run
that is resumed judges as one that was not. A small battery is noisy: a margin ought to be some times its spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from rebus.errors import RebusError
from rebus.train import checkpointing, parallel
from rebus.train.log import GATE, Journal, Reporter, read_journal
from rebus.train.stage import Evaluation, Gate

if TYPE_CHECKING:
    from rebus.train.state import Run

GOOD = "last-good.safetensors"
"""The weights with which every gate was last passed."""


@dataclass
class Gates:
    """The gates of a run under way."""

    gates: list[Gate]
    folder: Path
    history: dict[str, dict[int, float]]
    """what was measured at which step, by name"""
    fell: str | None = None
    """why the run has to stop"""

    @classmethod
    def of(cls, gates: list[Gate], folder: Path, step: int) -> Gates:
        """With what the log holds up to `step`. Raises RebusError for two gates that watch figures of one name."""
        names = [name for gate in gates for name in gate.margins]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RebusError(f"{', '.join(twice)} is watched by two gates. Watch it in one, or name the figures apart.")
        history: dict[str, dict[int, float]] = {}
        for record in read_journal(folder / "log.jsonl"):
            for name, value in record.items():
                if name.startswith(GATE) and record["step"] <= step:
                    history.setdefault(name.removeprefix(GATE), {})[int(record["step"])] = value
        return cls(gates, folder, history)

    def shut(
        self,
        run: Run,
        measure: Callable[[Run, Iterable[Evaluation]], dict[str, float]],
        journal: Journal,
        watcher: Reporter,
    ) -> bool:
        """Whether a gate is shut at the run's step. What is due and was not measured yet is measured (as evaluations are),
        reported, and the weights kept where nothing has fallen.

        Raises RebusError for a battery that does not yield what its gate watches, and when weights cannot be written.
        """
        due = [gate for gate in self.gates if run.step % gate.every == 0 or run.step >= run.stage.optim.steps]
        new = [gate for gate in due if not all(run.step in self.history.get(name, {}) for name in gate.margins)]
        if new:
            values = measure(run, [gate.battery for gate in new])
            if lacking := sorted({name for gate in new for name in gate.margins} - values.keys()):
                raise RebusError(
                    f"A gate watches {', '.join(lacking)}, but what was measured is {', '.join(values) or 'nothing'}. "
                    "Watch a figure that the battery yields."
                )
            for name, value in values.items():
                self.history.setdefault(name, {})[run.step] = value
            record = {"step": run.step} | {GATE + name: value for name, value in values.items()}
            journal.record(record)
            watcher.record(record)
        fallen = [(gate, said) for gate in due for said in self._fallen(gate, run.step)]
        for gate, said in fallen:
            if gate in new:
                watcher.note(f"step {run.step}: {said}")
        if new and not fallen:
            run.write_weights(self.folder / GOOD)
        self.fell = next((said for gate, said in fallen if gate.then == "stop"), None)
        return self.fell is not None

    def bring_back(self, run: Run, watcher: Reporter) -> None:
        """Puts the last good weights into the module and into `weights.safetensors`, and says of which step they are. Raises RebusError when they cannot be read or written."""
        good = self.folder / GOOD
        try:
            with safe_open(good, "pt") as file:
                step = int(file.metadata()["step"])
                found = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise RebusError(
                f"{self.fell}, and the last good weights, {good}, cannot be read: {error}. Start again from what this run "
                "began with."
            ) from None
        run.take_weights(found)
        if parallel.rank() == 0:
            about = {"stage": run.stage.name, "step": str(step)}
            checkpointing.write_weights(self.folder / "weights.safetensors", found, about)
        watcher.note(f"the weights are those of step {step} again")

    def _fallen(self, gate: Gate, step: int) -> Iterator[str]:
        for name, margin in gate.margins.items():
            values = self.history.get(name, {})
            if step not in values:
                continue
            before = [values[at] for at in sorted(values) if at < step]
            held = margin.fallen(before, values[step])
            if held is not None:
                unit = f"{margin.fall:.0%}" if margin.relative else f"{margin.fall:g}"
                yield (
                    f"{name} {'fell' if margin.better == 'higher' else 'rose'} from {held:.4g} ({margin.against}) to "
                    f"{values[step]:.4g}, by more than {unit}"
                )
