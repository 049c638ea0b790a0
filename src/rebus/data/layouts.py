"""Records laid out as Documents in the ways that several papers share: plain text, dialogs, the frames of a video."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from rebus.data.lines import Unreadable
from rebus.data.records import Record
from rebus.document import Document, Image, Message, assistant, user


def plain_text(record: Record, rng: Random) -> Document:
    """`text`, with no pictures."""
    return Document((assistant(record.text("text")),))


def turns(record: Record, rng: Random) -> Document:
    """`turns`, questions and answers by turns; or `question` and `answer` that are several, each after its label."""
    said = record.fields.get("turns")
    if not isinstance(said, list):
        asked = _labelled(record.text("question"), "Question:")
        said = [part for pair in zip(asked, _labelled(record.text("answer"), "Answer:"), strict=False) for part in pair]
    if len(said) < 2 or len(said) % 2 or not all(isinstance(part, str) and part.strip() for part in said):
        raise Unreadable(f"A dialog needs an answer to each question, but has {len(said)} turns. It is skipped.")
    messages: list[Message] = []
    for number in range(0, len(said), 2):
        shown = record.pictures(1) if number == 0 else ()
        messages += [user(*shown, said[number].strip()), assistant(ended(said[number + 1]))]
    return Document(tuple(messages))


def ended(answer: str) -> str:
    """An answer, with a full stop where it has none."""
    answer = answer.strip()
    return answer if answer.endswith(".") else answer + "."


def _labelled(text: str, label: str) -> list[str]:
    return [part.strip() for part in re.split(re.escape(label), text) if part.strip()]


def frames(images: Sequence[Image], count: int | None) -> tuple[Image, ...]:
    """At most `count` of the frames of a video, evenly spread, the first and the last among them."""
    images = tuple(images)
    if count is None or len(images) <= count:
        return images
    if count == 1:
        return images[:1]
    return tuple(images[round(number * (len(images) - 1) / (count - 1))] for number in range(count))
