"""What the figures of the study of LaVIT's tokens say, in words: every sentence follows from records, none is fixed.

The rule: one way is better than another if the difference of their means exceeds the spread of either over its seeds (highest
minus lowest). The length is dynamic if pictures differ several times as much as draws of one picture do, and longer pictures
are those with more to see. With a single seed there is no spread, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rebus.studies.arms import Record, summary

SEVERAL = 3.0
"""How many times as much pictures must differ as draws do."""
GOES_WITH = 0.3
"""Correlation from which tokens are said to go with complexity."""
UNLEARNED = ("random", "grid", "norm")
ENCODERS = ("pooled", "queries")

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


def findings(records: Sequence[Record]) -> list[Finding]:
    """The questions of the study, answered by its records."""

    def pair(other: str, measure: str) -> Against:
        return against(records, "learned", other, measure)

    made = []

    choices = [pair(other, "at_budget") for other in UNLEARNED]
    names = [pair(other, "named") for other in UNLEARNED]
    rule = overall([choice for choice in choices if choice.other in ("random", "grid")])
    words, yes = answer(
        rule,
        "Yes: at equal tokens it beats random patches and a grid.",
        "No: random patches and a grid are both better at equal tokens.",
        "No: it does not beat both random patches and a grid by more than the seeds differ.",
    )
    made.append(Finding("Does the learned choice help?", words, yes, _grounds([*choices, *names])))

    made.append(dynamic(records))

    merger = [pair(other, measure) for other in ("no_merger", "no_cross") for measure in ("at_budget", "named")]
    words, yes = answer(
        merger[0].says,
        "Yes: features are rebuilt better than from bare patches.",
        "No: bare patches are better.",
        "No: bare patches are as good within what the seeds differ.",
    )
    made.append(Finding("Does the merger help?", words, yes, _grounds(merger)))

    rivals = [pair(other, measure) for other in ENCODERS for measure in ("at_budget", "named")]
    rule = overall([rival for rival in rivals if rival.measure == "at_budget"])
    words, yes = answer(
        rule,
        "Yes: at equal tokens, parameters and steps it beats pooling and learned queries.",
        "No: pooling and learned queries are both better at equal tokens, parameters and steps.",
        "No: it does not beat both pooling and learned queries by more than the seeds differ.",
    )
    made.append(Finding("Is it worth more than an encoder that chooses nothing?", words, yes, _grounds(rivals)))

    coded = [pair("codes", "cosine"), pair("codes", "named_code"), pair("codes", "named")]
    words, yes = answer(
        coded[0].says,
        "Continuous tokens hold more.",
        "Codes hold more.",
        "No difference beyond what the seeds differ.",
    )
    made.append(Finding("Continuous tokens, or codes of the same patches?", words, yes, _grounds(coded)))
    return made


def dynamic(records: Sequence[Record]) -> Finding:
    """Is the length a picture's own?"""
    share, tokens = summary(records, "learned", "decided")[0], summary(records, "learned", "tokens")[0]
    deviation = summary(records, "learned", "deviation")[0]
    ratio = share / max(1 - share, 1e-9)
    together = {name: summary(records, "learned", name)[0] for name in ("complexity", "energy")}
    parts = ratio >= SEVERAL, max(together.values()) >= GOES_WITH
    words = {
        (True, True): "Yes: lengths are the pictures' own, and pictures with more to see are longer.",
        (True, False): "In part: lengths are the pictures' own, but do not go with how much there is to see.",
        (False, True): "In part: pictures with more to see are longer, but draws of one picture differ as much.",
        (False, False): "No: lengths are neither the pictures' own nor go with how much there is to see.",
    }[parts]
    grounds = (
        f"{tokens:.1f} tokens on average, with a deviation of {deviation:.2f} between pictures (chosen without dice)",
        f"drawn lengths vary {ratio:.2f} times as much between pictures as between draws of one (wanted: {SEVERAL:g})",
        f"correlation with PNG bytes {together['complexity']:.2f}, with gradient energy {together['energy']:.2f} "
        f"(wanted of one of them: {GOES_WITH:g})",
    )
    return Finding("Is the length dynamic?", words, all(parts), grounds)


def _grounds(comparisons: Sequence[Against]) -> tuple[str, ...]:
    titles = {
        "at_budget": "features rebuilt from exactly the budget",
        "cosine": "features rebuilt",
        "named": "same name nearest, by tokens",
        "named_code": "same name nearest, at a code's width",
    }
    return tuple(f"{titles[c.measure]}: {c}" for c in comparisons)


def conclusion(found: Sequence[Finding]) -> str:
    """The reader's question, answered from the findings: choose and merge patches, or just train an encoder?"""
    chooses, is_dynamic, merges, beats = (found[i].yes for i in (0, 1, 2, 3))
    if None in (chooses, merges, beats):
        return "One seed is no evidence. Run the study with three seeds."
    if beats:
        last = "It is worth its parameters: an encoder of equal size that chooses nothing rebuilds less."
    else:
        last = (
            "An encoder of equal size that chooses nothing is at least as good here: train that, and drop the selector."
        )
    parts = [
        f"The learned choice {'helps' if chooses else 'does not help'}",
        f"the merger {'helps' if merges else 'does not'}",
        f"lengths {'are' if is_dynamic else 'are not quite'} dynamic",
    ]
    return f"{parts[0]}, {parts[1]}, and {parts[2]}. {last}"


def document(records: Sequence[Record], *, setting: Mapping[str, object], tables: str, plots: Sequence[str]) -> str:
    """The study as Markdown: question, answer, grounds, tables and plots."""
    found = findings(records)
    seeds = len({record.seed for record in records})
    about = [f"{name.replace('_', ' ')} {value}" for name, value in setting.items()]
    lines = [
        "# Does it help that LaVIT chooses patches and merges the others into them?",
        "",
        "Written by `rebus study lavit-tokens` from what it measured; run it again, and it is written anew.",
        "",
        f"**Verdict.** {conclusion(found)}",
        "",
        f"Every arm was trained with {seeds} {'seed' if seeds == 1 else 'seeds'} on the frozen features of the mini vision "
        f"encoder: {', '.join(about)}. The rule: one way is better if the means differ by more than the larger of the two "
        "spreads over the seeds (highest minus lowest).",
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
        "Small pictures, small models and minutes of training: this says what helps at this size, not at 7 billion "
        "parameters.",
        "",
    ]
    return "\n".join(lines)
