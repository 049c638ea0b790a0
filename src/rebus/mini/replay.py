"""What the base language model says to plain questions, mixed into a mini's instruction tuning so that it keeps its words:
a model that trains on pictures and short answers alone forgets how to talk.

    replies = base_replies(work, system)          # once, from the model before it is trained
    documents = WithReplies(EmojiDocuments(...), replies, share=0.06, seed=0)

Dimension key: none
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from rebus.data.loader import Addressed
from rebus.document import Document, assistant, user
from rebus.mini.bank import alone
from rebus.sampling import Sampling
from rebus.system import System

SUBJECTS = (
    *("bridges", "bees", "bread", "the moon", "gardens", "bicycles", "volcanoes", "whales", "libraries", "clouds"),
    *("coffee", "mountains", "trains", "music", "paper", "the heart", "computers", "elections", "glass", "forests"),
    *("money", "ice", "languages", "sleepwalking", "windmills", "chess", "the Roman Empire", "vaccines", "wool"),
    *("earthquakes", "birthdays", "tea", "pencils", "migration of birds", "recycling", "castles", "lighthouses"),
    *("dreams", "gravity", "markets"),
)
ASKED = (
    "Tell me something about {x}.",
    "What is the use of {x}?",
    "Write two sentences on {x}.",
    "Explain {x} to a child of eight.",
    "Give me three facts on the subject of {x}.",
    "Why do people care about {x}?",
    "What would the world be like without {x}?",
    "Write the first lines of a story about {x}.",
    "Which questions would you ask an expert on {x}?",
    "Sum up the history of {x} in one sentence.",
    "Make a short list of words that go with {x}.",
    "What is a common mistake that beginners make about {x}?",
)
REPLY_WORDS = 96
"""Longest reply in words of the model."""
ROWS = 32
"""Replies that are written side by side."""


def prompts() -> list[str]:
    """The plain questions, every form with every subject."""
    return [form.format(x=subject) for form in ASKED for subject in SUBJECTS]


def base_replies(work: Path, base: System) -> list[tuple[str, str]]:
    """Question and reply of the model before it learns; greedy, written under `work/cache` the first time. A reply that
    came to no end is cut behind its last sentence, and left out where it has none."""
    file = work / "cache" / "base_replies.json"
    with alone(file):
        if not file.exists():
            documents = [Document((user(text),)) for text in prompts()]
            sampling = Sampling(temperature=0.0, max_new_tokens=REPLY_WORDS)
            messages = base.generate(documents, modality="text", sampling=sampling, rows=ROWS, template="chat")
            pairs = [(asked, whole(message.text)) for asked, message in zip(prompts(), messages, strict=True)]
            part = file.with_suffix(".part")
            part.write_text(json.dumps([pair for pair in pairs if pair[1]]))
            part.replace(file)
    return [(asked, reply) for asked, reply in json.loads(file.read_text())]


def whole(text: str) -> str:
    """The text up to the end of its last sentence; empty where it has none."""
    ends = [text.rfind(mark) for mark in (".", "!", "?")]
    return text[: max(ends) + 1].strip()


class WithReplies:
    """Documents of which a share is replaced by plain questions and the base model's replies; a pure function of the
    position, as what it draws from."""

    def __init__(self, documents: Addressed, replies: Sequence[tuple[str, str]], *, share: float, seed: int) -> None:
        self.documents, self.replies, self.share, self.seed = documents, replies, share, seed

    def __getitem__(self, position: int, /) -> Document:
        rng = Random(f"replay {self.seed} {position}")
        if rng.random() >= self.share:
            return self.documents[position]
        asked, reply = rng.choice(self.replies)
        return Document((user(asked), assistant(reply)))
