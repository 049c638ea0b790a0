"""What the figures of the study of causal codes say, in words: every sentence follows from records, none is fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rebus.studies.arms import Record
from rebus.studies.verdict import Against, Finding, against, answer, overall

RIVALS = ("bidirectional", "grid")
TITLE = "Does it help that SEED's codes are causal?"
WORDS = {
    "nats": "nats per code after a caption",
    "valid": "whole images without a grammar",
    "likeness": "drawn from a caption, cosine to the picture meant",
    "drawn": "drawn from a caption, picture meant found",
    "image_error": "image embedding rebuilt, squared error",
    "found": "rebuilt picture found",
}
LOWER = ("nats", "image_error")
"""Figures of which less is better."""
ASKED: Mapping[str, tuple[str, ...]] = {
    "Are causal codes easier for a language model to write?": ("nats",),
    "Does it write whole images more often where no grammar holds it?": ("valid",),
    "Are its drawings nearer to what was asked?": ("likeness", "drawn"),
    "Do causal codes keep more of the picture?": ("image_error", "found"),
}
"""Questions, each with the figures that answer it; the first of them decides."""


def findings(records: Sequence[Record]) -> list[Finding]:
    """The questions of the study, answered by its records."""
    made = []
    for question, figures in ASKED.items():
        compared = [against(records, "causal", other, m, higher=m not in LOWER) for m in figures for other in RIVALS]
        rule = overall([c for c in compared if c.measure == figures[0]])
        words, yes = answer(
            rule,
            "Yes: more than bidirectional codes and than grid cells.",
            "No: bidirectional codes and grid cells are both better.",
            _neither([c for c in compared if c.measure == figures[0]]),
        )
        made.append(Finding(question, words, yes, tuple(f"{WORDS[c.measure]}: {c}" for c in compared)))
    return made


def _neither(compared: Sequence[Against]) -> str:
    """Words for where the rivals do not both fall on one side."""
    names = {"bidirectional": "bidirectional codes", "grid": "grid cells"}
    sides = {"better": "better than", "worse": "worse than", "no different": "no different from"}
    parts = [f"{sides[c.says]} {names[c.other]}" for c in compared if c.says in sides]
    return (
        f"No: {' and '.join(parts)}."
        if len(set(c.says for c in compared)) > 1
        else f"No: {' and '.join(parts)} within what the seeds differ."
    )


def conclusion(found: Sequence[Finding]) -> str:
    """The paper's claim, that codes in a causal order suit a causal language model, from the findings."""
    writes, whole, draws, keeps = (finding.yes for finding in found)
    if None in (writes, whole, draws, keeps):
        return "One seed is no evidence. Run the study with three seeds."
    gains = [
        name
        for name, yes in (("easier to write", writes), ("more often whole", whole), ("nearer to what was asked", draws))
        if yes
    ]
    if len(gains) == 3:
        claim = "The claim holds here: causal codes are easier to write, more often whole, and drawn nearer to what was asked"
    elif gains:
        claim = f"The claim holds in part: against both rivals causal codes are {' and '.join(gains)}, and no more than that"
    else:
        claim = "The claim does not show here: by none of three figures are causal codes better than both rivals"
    return f"{claim}. They keep {'more' if keeps else 'no more'} of the picture than both rivals do."
