"""Does an answer hold a name? Whole words, whatever their case, punctuation and number (one or several)."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SPELLED = {"grey": "gray", "colour": "color", "colours": "colors", "0": "no", "zero": "no"}
_SPELLED |= {str(number): word for number, word in enumerate("no one two three four five six".split())}


def words(text: str) -> list[str]:
    """Lower-case words and numbers; British and American spelling and digits and number words are made one."""
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())
    return [_SPELLED.get(word, word) for word in found]


def holds(answer: str, name: str) -> bool:
    """Do the words of `name` stand in `answer`, whole and side by side? The last one may be in the plural."""
    wanted, said = words(name), words(answer)
    if not wanted:
        return False
    for start in range(len(said) - len(wanted) + 1):
        *body, last = said[start : start + len(wanted)]
        if body == wanted[:-1] and last in (wanted[-1], wanted[-1] + "s", wanted[-1] + "es"):
            return True
    return False


def holds_any(answer: str, names: Iterable[str]) -> bool:
    """Does the answer hold one of the names?"""
    return any(holds(answer, name) for name in names)


def says_yes(answer: str) -> bool | None:
    """Whether the first `yes` or `no` of an answer is `yes`; None where there is neither."""
    return next((word == "yes" for word in words(answer) if word in ("yes", "no")), None)


def first_of(answer: str, names: Iterable[str]) -> str | None:
    """Which of several one-word names an answer says first."""
    known = {words(name)[0]: name for name in names}
    return next((known[word] for word in words(answer) if word in known), None)
