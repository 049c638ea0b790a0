"""What the figures of the study of LaVIT's tokens say, in words: every sentence follows from records, none is fixed.

The rule that compares two ways is in `verdict.py`. The length is dynamic if pictures differ several times as much as draws
of one picture do, and longer pictures are those with more to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebus.studies.arms import Record, summary
from rebus.studies.verdict import Against, Finding, against, answer, overall, written

SEVERAL = 3.0
"""How many times as much pictures must differ as draws do."""
GOES_WITH = 0.3
"""Correlation from which tokens are said to go with complexity."""
UNLEARNED = ("random", "grid", "norm")
ENCODERS = ("pooled", "queries")


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
    """The study as Markdown."""
    found = findings(records)
    return written(
        "Does it help that LaVIT chooses patches and merges the others into them?",
        "lavit-tokens",
        conclusion(found),
        found,
        records,
        setting=setting,
        tables=tables,
        plots=plots,
    )
