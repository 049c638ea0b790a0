"""Results on disk: `report.json` with its recipe, a Markdown table, and picture sheets; all of it or nothing."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rebus.errors import RebusError
from rebus.evals.curves import draw_curve
from rebus.evals.figures import Figure
from rebus.evals.run import Results
from rebus.evals.sheets import sheet

TEXT_SAMPLES = 12
"""Samples of a task that are written out in the Markdown file."""


def write_report(results: Results, folder: Path) -> Path:
    """Writes the folder, replacing an earlier report there; what was there stays if anything goes wrong.

    Raises RebusError where `folder` holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "report.json").exists())):
        raise RebusError(f"{folder} holds something that is no report, and is not overwritten. Name another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _fill(part, results)
            part.chmod(0o755)
            old = part.with_suffix(".old")
            if folder.exists():
                folder.replace(old)
            part.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise RebusError(f"{folder} cannot be written: {error.strerror or error}. Name another folder.") from None
    return folder


def _fill(folder: Path, results: Results) -> None:
    (folder / "report.json").write_text(json.dumps(as_json(results), ensure_ascii=False, indent=1) + "\n")
    (folder / "report.md").write_text(as_markdown(results))
    for task in dict.fromkeys(sample.task for sample in results.samples):
        page = sheet([sample for sample in results.samples if sample.task == task])
        if page is not None:
            page.save(folder / f"{task}.png", optimize=True)
    with contextlib.suppress(ImportError):  # curves need matplotlib, an extra
        for curve in results.curves:
            draw_curve(curve, folder / f"{curve.name}-curve.png")


def as_json(results: Results) -> dict[str, Any]:
    """Recipe, figures, samples without their pictures, and what was left out; numbers that are none become null."""
    samples = [
        {key: getattr(s, key) for key in ("task", "asked", "wanted", "said", "score", "seed")} for s in results.samples
    ]
    figures = [{**asdict(f), "value": f.value, "low": f.low, "high": f.high} for f in results.figures]
    found = {"recipe": results.recipe, "figures": figures, "left_out": results.left_out, "samples": samples}
    return json.loads(json.dumps(found, default=str), parse_constant=lambda name: None)


def as_markdown(results: Results) -> str:
    """The recipe, the table of figures with what each counts, what was left out, and a few samples of each task."""
    recipe = results.recipe
    kept = (
        "commit",
        "command",
        "split",
        "n",
        "seeds",
        "choice",
        "temperature",
        "top_p",
        "guidance",
        "best_of",
        "steps",
        "device",
    )
    lines = [f"# {recipe.get('system') or 'system'} on split `{recipe.get('split')}`", ""]
    lines += [f"- {name}: {_plain(recipe[name])}" for name in kept if recipe.get(name) not in (None, "")]
    for part, facts in recipe.get("weights", {}).items():
        lines.append(f"- {part}: {facts['parameters']:,} parameters, sha256 {facts['sha256']}")
    lines += ["", table(results.figures), ""]
    lines += [f"- `{figure.name}`: {figure.note}" for figure in results.figures if figure.note]
    lines += [f"\n![{curve.name} over {curve.over}]({curve.name}-curve.png)" for curve in results.curves]
    if results.left_out:
        lines += ["", "Left out:", "", *(f"- {task}: {why}" for task, why in results.left_out.items())]
    for task in dict.fromkeys(sample.task for sample in results.samples):
        chosen = [sample for sample in results.samples if sample.task == task][:TEXT_SAMPLES]
        lines += ["", f"## {task}", "", "| asked | wanted | came | score |", "|---|---|---|---|"]
        lines += [_row([s.asked, s.wanted, s.said, number(s.score)]) for s in chosen]
        if any(sample.pictures for sample in chosen):
            lines += ["", f"![{task}]({task}.png)"]
    return "\n".join(lines) + "\n"


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table: value, range over the seeds, chance, wrong targets, ceiling, items."""
    lines = ["| figure | value | range | chance | shuffled | ceiling | n |", "|---|---|---|---|---|---|---|"]
    for f in figures:
        arrow = {"higher": "", "lower": " ↓", "": ""}[f.better]
        spread = f"{number(f.low)} … {number(f.high)}" if len(f.runs) > 1 else "one run"
        cells = [number(f.value), spread, number(f.chance), number(f.shuffled), number(f.ceiling), str(f.n)]
        lines.append(_row([f.name + arrow, *cells]))
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three decimals below ten, one below a thousand, none above; a dash for what does not exist."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|")[:160] for cell in cells) + " |"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
