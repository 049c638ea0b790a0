"""From the words of a reply to what a reader gets: text as soon as it is certain, images and boxes when they close.

Dimension key: N words of an image · D language-model width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rebus.grammar import Grammar
from rebus.nn.text_tokenizer import TextStream

Ending = Literal["end", "length", "stop"]


@dataclass(frozen=True, eq=False)
class Span:
    """A group of words that is no text and is complete: an image or a box, marks included."""

    ids: list[int]
    hidden_ND: Tensor | None = None
    """hidden states at the words between the marks, where the model has an output projector"""


@dataclass(frozen=True)
class Finished:
    """A reply is over: it said so, it may not be longer, or a stop string came."""

    reason: Ending


Event = str | Span | Finished


class Narrator:
    """Words in, text and spans out. Text that may yet become a stop string is held back; from one on, all is silence."""

    def __init__(self, grammar: Grammar, stop: tuple[str, ...] = ()) -> None:
        self._grammar, self._stop = grammar, stop
        self._text = TextStream(grammar.text)
        self._held = ""
        self._group: list[int] = []
        self._closing: int | None = None
        self.stopped = False

    def push(self, word: int) -> list[str | Span]:
        """What this word completes."""
        if self.stopped:
            return []
        if self._closing is not None:
            self._group.append(word)
            if word != self._closing:
                return []
            span, self._group, self._closing = Span(self._group), [], None
            return [span]
        closing = self._grammar.special.closing(word)
        if closing is None and word != self._grammar.special.eos:
            return self._say(self._text.push([word]))
        said = self.flush()
        self._closing, self._group = closing, [word]
        return said

    def flush(self) -> list[str | Span]:
        """The text that was held back: a segment ends here."""
        said = self._say(self._text.flush(), last=True)
        self._text = TextStream(self._grammar.text)
        return said

    def _say(self, text: str, last: bool = False) -> list[str | Span]:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            keep = 0 if last else max((_overlap(self._held, stop) for stop in self._stop), default=0)
            cut = len(self._held) - keep
        said, self._held = self._held[:cut], self._held[cut:]
        return [said] if said else []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` may begin with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-n:])), 0)
