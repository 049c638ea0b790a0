"""How a paper spells: documents become sequences, replies become parts, and a rule says which word may come next.

A grammar is pure: no weights, no device, no randomness. What all papers' grammars share is here: the protocol,
templates as data, and a writer that keeps words, targets and spans in step.

Dimension key: V vocabulary · N visual tokens
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from rebus.document import Document, Image, Message, Part, Role
from rebus.errors import RebusError
from rebus.nn.text_tokenizer import TextTokenizer
from rebus.sequence import Sequence
from rebus.visual import Features, Patches

Modality = Literal["any", "text", "image"]
TemplateName = Literal["plain", "chat"]
LossKind = Literal["all", "reply", "paper"]


@dataclass(frozen=True, eq=False)
class Allow:
    """The next word is chosen by the model among these."""

    mask_V: Tensor
    """bool over the whole vocabulary"""
    first: int | None = None
    """One of these that is decided on before the others, by its own probability. The mark that ends an image of any length
    is one word against thousands of codes that are all unlikely: after a temperature below 1, or among the likeliest few, it
    would be far too likely."""


@dataclass(frozen=True)
class Force:
    """The next words are these, whatever the model says; the decoding loop takes them in one forward pass."""

    run: tuple[int, ...]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that mean something to the decoding loop."""

    eos: int
    """ends a reply"""
    pad: int
    """fills rows; never attended to"""
    begin_image: int
    """opens a generated image"""
    end_image: int
    """closes it; the words between the two are the image's own"""
    bos: int | None = None
    """begins a document, where the model has such a word"""
    spans: tuple[tuple[int, int], ...] = ()
    """(opening, closing) of further groups of words that `read` takes as a whole, such as boxes"""

    def closing(self, opening: int) -> int | None:
        """The word that closes what `opening` opens, or None where it opens nothing."""
        pairs = dict(self.spans) | {self.begin_image: self.end_image}
        return pairs.get(opening)


class Grammar(Protocol):
    """All that a paper decides about vocabulary, templates, special tokens and which words are learned."""

    special: SpecialTokens
    text: TextTokenizer
    vocabulary: int

    def serialize(
        self,
        document: Document,
        *,
        reply: Modality | None = None,
        template: TemplateName = "chat",
        loss: LossKind = "reply",
    ) -> Sequence:
        """Lay a document out. With `reply` the assistant's message is left open, ready to be continued.

        Loss on "all" words, on the "reply" (the assistant's messages and what ends them), or as the "paper" does.
        Raises RebusError, naming message and part, for an image without the tokens that its role asks for.
        """
        ...

    def next(self, reply: list[int], modality: Modality, left: int) -> Allow | Force:
        """What may follow the words of a reply when `left` more may be written. A pure function: it never begins what
        cannot be finished. Raises RebusError when an image is asked for and `left` has no room for one."""
        ...

    def read(self, ids: list[int]) -> list[Part]:
        """The inverse of a reply's layout: text, images and boxes."""
        ...

    def unconditional(self) -> list[int]:
        """The prompt of the guidance stream: what stands before an image that nothing was said about. The image's
        words follow, from its opening mark on."""
        ...


# ---------------------------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class Template:
    """The strings around messages, each a pair (before, after). Special tokens stand in them by name."""

    begin: str = ""
    """what a document begins with"""
    system: tuple[str, str] = ("", "")
    """around a system message"""
    user: tuple[str, str] = ("", "")
    """around a user's message"""
    assistant: tuple[str, str] = ("", "")
    """around a reply; what stands after it is learned with it"""
    between: str = ""
    """between any two messages"""
    end: str = ""
    """what a finished document ends with; learned with the reply before it"""
    caption: str = ""
    """what stands before a text reply to an image"""
    draw: str = ""
    """what stands before the words that ask for an image"""

    def around(self, role: Role) -> tuple[str, str]:
        """The pair of a role."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


VICUNA = Template("<s>", ("", ""), ("USER: ", ""), ("ASSISTANT:", ""), "\n", "</s>")
LLAMA2 = Template("<s>", ("", ""), ("[INST] ", " [/INST]"), ("", ""), "\n", "</s>")
CHATML = Template(
    begin="",
    system=("<|im_start|>system\n", "<|im_end|>"),
    user=("<|im_start|>user\n", "<|im_end|>"),
    assistant=("<|im_start|>assistant\n", "<|im_end|>"),
    between="\n",
)
PLAIN = Template(begin="<s>", end="</s>")


@dataclass(frozen=True)
class Place:
    """Where a part stands in its document, counted from 1, for messages that name it."""

    message: int
    part: int

    def __str__(self) -> str:
        return f"part {self.part} of message {self.message}"


class Writer:
    """Writes a sequence piece by piece: ids, which of them are learned, and the spans of vectors.

    Adjacent text is joined before it is encoded, so that words are cut as in running text; `cut` ends a segment, as
    every special token does. Cuts must not depend on what is learned, or a loss would change the words.
    """

    def __init__(self, text: TextTokenizer) -> None:
        self._tokenizer = text
        self._sequence = Sequence([], [])
        self._segment = ""
        self._learned = False

    def text(self, text: str, learned: bool) -> None:
        """Plain text; special tokens' names in it are text as well."""
        if learned != self._learned:
            self.cut()
        self._segment += text
        self._learned = learned

    def template(self, text: str, learned: bool) -> None:
        """Text of a template, in which special tokens stand by name."""
        while text:
            found = [(text.find(name), name) for name in self._tokenizer.specials if name in text]
            at, name = min(found, key=lambda hit: (hit[0], -len(hit[1])), default=(len(text), ""))
            self.text(text[:at], learned)
            if name:
                self.words([self._tokenizer.specials[name]], learned)
            text = text[at + len(name) :]

    def words(self, ids: Many[int], learned: bool) -> None:
        """Words by id: special tokens, codes, placeholders."""
        self.cut()
        self._sequence.ids += ids
        self._sequence.target += [learned] * len(ids)

    def inputs(self, ids: Many[int], features: Features | Patches, views: int, learned: bool) -> None:
        """Placeholder words that understood features are written over: `ids` is the slots of `views` views in order."""
        self.cut()
        start, each = len(self._sequence.ids), len(ids) // views
        self.words(ids, learned)
        self._sequence.input_spans += [(start + v * each, start + (v + 1) * each) for v in range(views)]
        self._sequence.inputs.append(features)

    def outputs(self, ids: Many[int], target: Features | None, learned: bool) -> None:
        """Placeholder words whose hidden states become an image, with its regression target where there is one."""
        self.cut()
        start = len(self._sequence.ids)
        self.words(ids, learned)
        self._sequence.output_spans.append((start, start + len(ids)))
        self._sequence.outputs += [] if target is None else [target]

    def cut(self) -> None:
        """End the segment of text that is being written."""
        if self._segment:
            segment, self._segment = self._segment, ""
            ids = self._tokenizer.encode(segment)
            self._sequence.ids += ids
            self._sequence.target += [self._learned] * len(ids)

    def finish(self) -> Sequence:
        """The sequence."""
        self.cut()
        return self._sequence


def special_id(text: TextTokenizer, name: str) -> int:
    """The id of a special token. Raises RebusError when the tokenizer has none of this name."""
    if name not in text.specials:
        known = ", ".join(text.specials) or "none"
        raise RebusError(
            f"The template needs the special token {name!r}, but the text tokenizer has {known}. "
            "Use the tokenizer that the language model was published with."
        )
    return text.specials[name]


def open_image(reply: list[int], special: SpecialTokens) -> int | None:
    """Words of the image that is being written, or None outside images."""
    for back, word in enumerate(reversed(reply)):
        if word == special.end_image:
            return None
        if word == special.begin_image:
            return back
    return None


def asks_for_image(following: tuple[Message, ...], reply: Modality | None) -> bool:
    """Whether a user's message asks for an image: the reply in `following` begins with one, or none is there yet and
    `reply` is to be one."""
    if following:
        return following[0].role == "assistant" and isinstance(next(iter(following[0].content), None), Image)
    return reply == "image"
