"""The model card of a saved system: what it is, how it is loaded, its parts, and the figures that `rebus eval` measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebus.errors import RebusError

ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
COLUMNS = ("value", "chance", "shuffled", "ceiling")


def model_card(
    name: str, about: str, parameters: Mapping[str, int], report: Path | None, licence: str
) -> tuple[str, dict[str, bytes]]:
    """The text of the card, and the picture sheets that it shows, by file name. `about` is the docstring of the
    paper's package, whose first two paragraphs say what it is; `parameters` counts each part.

    Raises RebusError where `report` is no folder that `rebus eval` wrote.
    """
    paper = name.partition(":")[0]
    head = ["---", f"license: {licence}", "library_name: rebus", "pipeline_tag: any-to-any", "tags:", "- rebus"]
    head += [f"- {paper}", *(f"- arxiv:{number}" for number in ARXIV.findall(about)), "---"]
    total = sum(parameters.values())
    lines = [*head, "", f"# {name}", "", *"\n\n".join(about.strip().split("\n\n")[:2]).splitlines(), ""]
    lines += ["```python", "from rebus import load", "", 'system = load("path/of/this/folder")', "```", ""]
    lines += ["| part | parameters |", "|---|---|"]
    lines += [f"| {part} | {count:,} |" for part, count in parameters.items()]
    lines += [f"| all | {total:,} |", "", "## Figures", ""]
    if report is None:
        lines += ["None were given when this card was written. `rebus eval` measures them."]
        return "\n".join(lines) + "\n", {}
    found = _read(report)
    recipe, figures = found["recipe"], found["figures"]
    lines += [
        f"Measured on split `{recipe.get('split')}` with `{recipe.get('command')}`. Chance is an answer that knows nothing "
        "of the question, shuffled the same answers against the targets of other items, ceiling what a right answer gets.",
        "",
        "| figure | " + " | ".join(COLUMNS) + " | n |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for figure in figures:
        arrow = " ↓" if figure.get("better") == "lower" else ""
        cells = [str(figure["name"]) + arrow, *(_number(figure.get(column)) for column in COLUMNS), str(figure["n"])]
        lines.append("| " + " | ".join(cells) + " |")
    pictures = {sheet.name: sheet.read_bytes() for sheet in sorted(report.glob("*.png"))}
    for sheet in pictures:
        lines += ["", f"![{sheet.removesuffix('.png')}]({sheet})"]
    return "\n".join(lines) + "\n", pictures


def _read(report: Path) -> dict[str, Any]:
    try:
        found = json.loads((report / "report.json").read_text())
        [(figure["name"], figure["n"], float(figure["value"])) for figure in found["figures"]]
        found["recipe"].get("split")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise RebusError(
            f"{report} holds no report that can be read ({error}). Name a folder that `rebus eval` wrote."
        ) from None
    return found


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
