"""A conversation that can be taken back, branched and kept: a tree of exchanges, of which one path is being talked along.

An exchange is a question and its reply; it follows another one or begins the conversation. The terminal and the page hold
one of these; nothing here shows anything or calls a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rebus.apps.memory import remembering_png
from rebus.document import Document, Image, Message, OpenImage, from_json, to_json
from rebus.errors import RebusError

MAX_EXCHANGES = 10_000
"""The most exchanges of a file that is opened."""


@dataclass(frozen=True, eq=False)
class Exchange:
    """A question, its reply, and the exchange before it."""

    asked: Message
    answered: Message
    before: Exchange | None = None


@dataclass
class Conversation:
    """All exchanges in the order in which they were had, and the last one of the path that is talked along."""

    exchanges: list[Exchange] = field(default_factory=list)
    last: Exchange | None = None

    @property
    def path(self) -> list[Exchange]:
        """The exchanges from the first to the last one."""
        found = []
        exchange = self.last
        while exchange is not None:
            found.append(exchange)
            exchange = exchange.before
        return found[::-1]

    @property
    def document(self) -> Document:
        """What was said along the path."""
        return Document(tuple(message for e in self.path for message in (e.asked, e.answered)))

    @property
    def images(self) -> list[Image]:
        """The images along the path that can be seen, each once: one that is shown again is the same image."""
        return list({id(image): image for image in self.document.images if image.pixels is not None}.values())

    def add(self, asked: Message, answered: Message) -> None:
        """Goes on by a whole exchange."""
        self.last = Exchange(asked, answered, self.last)
        self.exchanges.append(self.last)

    def undo(self) -> Message:
        """Takes the last exchange back and returns its question. It is forgotten unless others follow it.

        Raises RebusError when nothing has been said."""
        last = self.last
        if last is None:
            raise RebusError("The conversation is empty, so nothing can be taken back. Write a message first.")
        self.last = last.before
        if not any(e.before is last for e in self.exchanges):
            self.exchanges.remove(last)
        return last.asked

    def back_to(self, turns: int) -> None:
        """Goes back to behind the first `turns` exchanges; what is said next begins a branch, and what followed is kept.

        Raises RebusError for more turns than there are."""
        path = self.path
        if not 0 <= turns <= len(path):
            raise RebusError(
                f"The conversation has {len(path)} turns, so it cannot go back to behind turn {turns}. Name 0 to {len(path)}."
            )
        self.last = path[turns - 1] if turns else None

    @property
    def branches(self) -> list[Exchange]:
        """The last exchange of every branch, oldest first; the current place too when more follows it."""
        followed = {id(e.before) for e in self.exchanges}
        return [e for e in self.exchanges if id(e) not in followed or e is self.last]

    def switch(self, number: int) -> None:
        """Goes on at the end of a branch, by its place in `branches` from 0. Raises RebusError where there is none."""
        ends = self.branches
        if not 0 <= number < len(ends):
            raise RebusError(
                f"There are {len(ends)} branches, but number {number + 1} was asked for. Name one of them."
            )
        self.last = ends[number]

    def branch_title(self, end: Exchange) -> str:
        """How a branch is told from the others: its turns, and its first question that no other branch has."""
        path = Conversation(self.exchanges, end).path
        others = [e for branch in self.branches if branch is not end for e in Conversation(self.exchanges, branch).path]
        own = next((e for e in path if not any(e is other for other in others)), path[-1])
        words = " ".join(own.asked.text.split()) or "a picture"
        turns = f"{len(path)} turn" + ("s" if len(path) > 1 else "")
        return f"{words if len(words) <= 48 else words[:47] + '…'} ({turns})"


# ------------------------------------------------------------------------------------------------ the JSON form


def conversation_json(conversation: Conversation) -> dict[str, Any]:
    """The path in the chat-message form, with pictures that remember, and under `branches` the exchanges beside it: each
    with the number of the exchange that it follows, the path's first, then the branches' in order; -1: none."""
    path = conversation.path
    others = [e for e in conversation.exchanges if not any(e is own for own in path)]
    numbers = {id(e): number for number, e in enumerate([*path, *others])}
    data = to_json(conversation.document, remembering_png)
    if others:
        data["branches"] = [
            {"follows": -1 if e.before is None else numbers[id(e.before)], **_two(e.asked, e.answered)} for e in others
        ]
    return data


def _two(asked: Message, answered: Message) -> dict[str, Any]:
    return to_json(Document((asked, answered)), remembering_png)


def conversation_from_json(data: Any, open_image: OpenImage) -> Conversation:
    """The inverse of `conversation_json`. Raises RebusError for data that is no document, whose messages are not questions
    and replies in turn, or whose branches follow what is not there."""
    conversation = Conversation()
    for asked, answered in _exchanges(from_json(data, open_image)):
        conversation.add(asked, answered)
    last = conversation.last
    branches = data.get("branches", [])
    if not isinstance(branches, list) or len(conversation.exchanges) + len(branches) > MAX_EXCHANGES:
        raise RebusError(f"The branches of this conversation are no list of at most {MAX_EXCHANGES:,}. Save it again.")
    for number, branch in enumerate(branches, 1):
        follows = branch.get("follows") if isinstance(branch, dict) else None
        if type(follows) is not int or not -1 <= follows < len(conversation.exchanges):
            raise RebusError(f"Branch {number} of this conversation follows no exchange before it. Save it again.")
        conversation.last = None if follows == -1 else conversation.exchanges[follows]
        for asked, answered in _exchanges(from_json(branch, open_image)):
            conversation.add(asked, answered)
    conversation.last = last
    return conversation


def _exchanges(document: Document) -> Iterator[tuple[Message, Message]]:
    messages = document.messages
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] * (len(messages) // 2):
        raise RebusError(
            f"A conversation is questions and replies in turn, but the roles here are {', '.join(roles[:6])}. "
            "Open one that the chat or the page saved."
        )
    yield from zip(messages[::2], messages[1::2], strict=True)
