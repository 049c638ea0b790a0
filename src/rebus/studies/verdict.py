"""What the figures of a study say, in words: every sentence follows from records, none is fixed.

The rule: one way is better than another if the difference of their means exceeds the spread of either over its seeds (highest
minus lowest). With a single seed there is no spread, and nothing is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebus.studies.arms import Arm, Measure, Record, plot, summary, table, write

Says = Literal["better", "worse", "no different", "unknown"]


@dataclass(frozen=True)
class Against:
    """Two arms compared by one figure."""

    arm: str
    other: str
    measure: str
    mean: float
    mean_of_other: float
    spread: float
    """the larger of the two spreads over the seeds"""
    seeds: int
    higher: bool = True
    """whether more of it is better"""

    @property
    def says(self) -> Says:
        """What the rule says of the first."""
        if self.seeds < 2:
            return "unknown"
        gain = (self.mean - self.mean_of_other) * (1 if self.higher else -1)
        return "better" if gain > self.spread else "worse" if gain < -self.spread else "no different"

    def __str__(self) -> str:
        spread = f"seed spread {self.spread:.4f}" if self.seeds > 1 else "one seed"
        difference = f"{self.mean:.4f} against {self.mean_of_other:.4f} of `{self.other}` ({spread})"
        return f"{'cannot be said: ' if self.says == 'unknown' else self.says + ': '}{difference}"


def against(records: Sequence[Record], arm: str, other: str, measure: str, *, higher: bool = True) -> Against:
    """Compares two arms over the seeds that both have."""
    seeds = {r.seed for r in records if r.arm == arm} & {r.seed for r in records if r.arm == other}
    some = [record for record in records if record.seed in seeds]
    mean, low, high = summary(some, arm, measure)
    mean_of_other, other_low, other_high = summary(some, other, measure)
    return Against(
        arm, other, measure, mean, mean_of_other, max(high - low, other_high - other_low), len(seeds), higher
    )


def best_of(records: Sequence[Record], arms: Sequence[str], measure: str) -> str:
    """The arm with the highest mean."""
    return max(arms, key=lambda arm: summary(records, arm, measure)[0])


def overall(comparisons: Sequence[Against]) -> Says:
    """`better` or `worse` if all are, `unknown` if any is, else `no different`."""
    said = {comparison.says for comparison in comparisons}
    if "unknown" in said:
        return "unknown"
    return said.pop() if len(said) == 1 else "no different"


@dataclass(frozen=True)
class Finding:
    """An answer to one question, with what it rests on."""

    question: str
    answer: str
    yes: bool | None
    """None where the figures do not say"""
    grounds: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"**{self.question}** {self.answer}", "", *(f"- {ground}" for ground in self.grounds), ""])


def answer(says: Says, yes: str, no: str, same: str) -> tuple[str, bool | None]:
    """Words for what the rule says."""
    words = {"better": (yes, True), "worse": (no, False), "no different": (same, False)}
    return words.get(says, ("Cannot be said: more than one seed is needed.", None))


def written(
    title: str,
    name: str,
    conclusion: str,
    found: Sequence[Finding],
    records: Sequence[Record],
    *,
    setting: Mapping[str, object],
    tables: str,
    plots: Sequence[str],
) -> str:
    """A study as Markdown: question, verdict, answers with their grounds, tables and plots."""
    seeds = len({record.seed for record in records})
    about = [f"{key.replace('_', ' ')} {value}" for key, value in setting.items()]
    lines = [
        f"# {title}",
        "",
        f"Written by `rebus study {name}` from what it measured; run it again, and it is written anew.",
        "",
        f"**Verdict.** {conclusion}",
        "",
        f"Every arm was trained with {seeds} {'seed' if seeds == 1 else 'seeds'} on the embedded pictures: {', '.join(about)}. "
        "The rule: one way is better if the means differ by more than the larger of the two spreads over the seeds (highest "
        "minus lowest).",
        "",
        *map(str, found),
        "## Figures",
        "",
        "Mean over the seeds (lowest to highest).",
        "",
        tables,
        "",
        *(f"![{plot}]({plot})" for plot in plots),
        "",
        "Small pictures, small models and minutes of training: this says what helps at this size, not at billions of "
        "parameters.",
        "",
    ]
    return "\n".join(lines)


def publish(
    name: str,
    folders: Sequence[Path | None],
    arms: Sequence[Arm],
    measures: Sequence[Measure],
    records: Sequence[Record],
    *,
    title: str,
    conclusion: str,
    found: Sequence[Finding],
    setting: Mapping[str, object],
) -> str:
    """Writes `NAME.md` and, where matplotlib is installed, its plot into each folder that is one. Returns the text."""
    drawn: dict[str, bytes] = {}
    file = name.replace("-", "_")
    with contextlib.suppress(ImportError):  # plots need matplotlib, an extra
        drawn[f"{file}.png"] = plot(arms, measures, records)
    tables = table(arms, measures, records)
    text = written(title, name, conclusion, found, records, setting=setting, tables=tables, plots=list(drawn))
    write_document(folders, file, text, drawn)
    return text


def write_document(folders: Sequence[Path | None], name: str, text: str, drawn: Mapping[str, bytes]) -> None:
    """`NAME.md` and its pictures into each folder that is one; every file whole or not at all."""
    for folder in filter(None, folders):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / f"{name}.md", text.encode())
        for picture, content in drawn.items():
            write(folder / picture, content)
