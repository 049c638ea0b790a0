"""CIDEr-D (1411.5726 section 5): how much of what people say of an image, and of this image alone, a caption says.

Texts become counts of 1- to 4-grams, weighted by how rare an n-gram is among the references of all images; a caption's
score is ten times its cosine with the references, counts clipped to the reference's, times a penalty for another length.
Words are not stemmed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rebus.evals.wordmatch import words

SIGMA = 6.0
"""Width of the length penalty, in words."""
N = 4
"""Longest n-gram."""

Grams = tuple[str, ...]


class Cider:
    """Scores captions against the references of a set of images, whose n-gram statistics are taken once."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counted = [[_grams(text) for text in texts] for texts in references]
        seen = Counter(gram for texts in counted for gram in set().union(*texts))
        self._log_images = math.log(max(len(references), 1))
        self._log_seen = {gram: math.log(count) for gram, count in seen.items()}

    def score(self, caption: str, references: Sequence[str]) -> float:
        """0 … 10, the mean over the references of one image."""
        mine = _grams(caption)
        return sum(self._likeness(mine, _grams(text)) for text in references) / max(len(references), 1)

    def _weight(self, gram: Grams) -> float:
        return self._log_images - self._log_seen.get(gram, 0.0)

    def _likeness(self, mine: Counter[Grams], theirs: Counter[Grams]) -> float:
        total = 0.0
        for n in range(1, N + 1):
            a = {gram: count * self._weight(gram) for gram, count in mine.items() if len(gram) == n}
            b = {gram: count * self._weight(gram) for gram, count in theirs.items() if len(gram) == n}
            lengths = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
            if lengths:
                total += sum(min(v, b[gram]) * b[gram] for gram, v in a.items() if gram in b) / lengths
        longer = sum(c for g, c in mine.items() if len(g) == 1) - sum(c for g, c in theirs.items() if len(g) == 1)
        return 10 * total / N * math.exp(-(longer**2) / (2 * SIGMA**2))


def _grams(text: str) -> Counter[Grams]:
    said = words(text)
    return Counter(tuple(said[i : i + n]) for n in range(1, N + 1) for i in range(len(said) - n + 1))
