"""The embedded data as Documents: captions, drawings, questions, scenes, picture books and chats about real emoji.

`EmojiDocuments(pictures, split, seed)[i]` is a pure function of its arguments, so that a position is all the state a
training run has to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from random import Random

from rebus.data import phrases as p
from rebus.data.backdrops import COLOURS
from rebus.data.emoji_chats import album, chat, two_pictures
from rebus.data.emoji_pointing import scene_boxes, small_thing, what_there, where
from rebus.data.emoji_scenes import scene_caption, scene_describe, scene_draw, scene_question, scene_request
from rebus.data.emoji_stories import story, story_turns
from rebus.data.emoji_words import facts, read_words, slide, slide_layout
from rebus.data.phrases import say, sentence
from rebus.data.pictures import Pictures
from rebus.data.selection import Selection
from rebus.data.wording import GROUPS
from rebus.document import Document, assistant, user
from rebus.errors import RebusError


def _caption_text(selection: Selection, row: int, name: str, rng: Random) -> str:
    words = selection.keywords(row, rng)
    templates = p.CAPTIONS_WITH_WORDS if words and rng.random() < 0.15 else p.CAPTIONS
    return say(templates, rng, a=name, style=selection.style(row), words=", ".join(words))


def _background(rng: Random) -> tuple[str, str]:
    """A colour, nearly always white, and how a caption says it."""
    if rng.random() < 0.85:
        return "white", ""
    colour = rng.choice([name for name in COLOURS if name != "white"])
    return colour, f", on {'an' if colour[0] in 'aeiou' else 'a'} {colour} background"


def caption(selection: Selection, rng: Random, size: int) -> Document:
    """A picture, then what it shows: pre-training, no instruction."""
    row, (colour, said) = selection.pick(rng), _background(rng)
    text = _caption_text(selection, row, selection.name(row), rng) + said
    return Document((user(selection.image(row, size, colour)), assistant(text)))


def draw(selection: Selection, rng: Random, size: int) -> Document:
    """What a picture shows, then the picture: pre-training, no instruction."""
    row, (colour, said) = selection.pick(rng), _background(rng)
    text = _caption_text(selection, row, selection.wish(row, rng), rng) + said
    return Document((user(text), assistant(selection.image(row, size, colour))))


def describe(selection: Selection, rng: Random, size: int) -> Document:
    """`What is this?` and the answer."""
    row = selection.pick(rng)
    answer = say(p.SAY_WHAT, rng, a=selection.name(row), style=selection.style(row))
    return Document((user(*_ask(selection, row, say(p.ASK_WHAT, rng), rng, size)), assistant(answer)))


def request(selection: Selection, rng: Random, size: int) -> Document:
    """`Draw a red apple in Noto style.` and the picture."""
    row, (colour, said) = selection.pick(rng), _background(rng)
    name = selection.name(row)
    templates = p.DRAW if rng.random() < 0.4 else p.DRAW_IN_STYLE
    text = sentence(say(templates, rng, a=selection.wish(row, rng) + said, style=selection.style(row)))
    image = selection.image(row, size, colour)
    if rng.random() < 0.7:
        return Document((user(text), assistant(image)))
    return Document((user(text), assistant(say(p.HERE_IS, rng, a=name), image)))


def question(selection: Selection, rng: Random, size: int) -> Document:
    """A question about one picture; yes and no are equally often right."""
    row = selection.pick(rng)
    name, style = selection.name(row), selection.style(row)
    kind = rng.choice(("what", "style", "group", "words", "if", "if", "if style"))
    words = selection.keywords(row, rng)
    if kind == "words" and not words:
        kind = "what"
    match kind:
        case "what":
            asked, answer = say(p.ASK_WHAT, rng), say(p.SAY_WHAT, rng, a=name, style=style)
        case "style":
            asked, answer = say(p.ASK_STYLE, rng), sentence(say(p.SAY_STYLE, rng, style=style))
        case "group":
            asked, answer = say(p.ASK_GROUP, rng), say(p.SAY_GROUP, rng, group=GROUPS[selection.pictures.group[row]])
        case "words":
            asked, answer = say(p.ASK_WORDS, rng), sentence(say(p.SAY_WORDS, rng, words=", ".join(words)))
        case "if style":
            is_so = rng.random() < 0.5
            asked = say(p.ASK_IF_STYLE, rng, style=style if is_so else selection.other_style_name(row, rng))
            answer = "Yes." if is_so else rng.choice(("No.", f"No, it is {style} style."))
        case _:
            is_so = rng.random() < 0.5
            meant = row if is_so else selection.something_else(row, rng)
            asked = say(p.ASK_IF, rng, a=selection.name(meant))
            answer = say(p.YES if is_so else p.NO, rng, a=name)
    return Document((user(*_ask(selection, row, asked, rng, size)), assistant(answer)))


def _ask(selection: Selection, row: int, text: str, rng: Random, size: int) -> tuple:
    """Picture and question, three times out of four in this order."""
    image = selection.image(row, size)
    return (image, text) if rng.random() < 0.75 else (f"{text} ", image)


Kind = Callable[[Selection, Random, int], Document]
KINDS: dict[str, Kind] = {
    "caption": caption,
    "draw": draw,
    "describe": describe,
    "request": request,
    "question": question,
    "scene_caption": scene_caption,
    "scene_draw": scene_draw,
    "scene_describe": scene_describe,
    "scene_request": scene_request,
    "scene_question": scene_question,
    "two_pictures": two_pictures,
    "album": album,
    "chat": chat,
    "scene_boxes": scene_boxes,
    "where": where,
    "what_there": what_there,
    "small_thing": small_thing,
    "read_words": read_words,
    "facts": facts,
    "story": story,
    "story_turns": story_turns,
    "slide": slide,
    "slide_layout": slide_layout,
}

PRETRAIN: Mapping[str, float] = {
    "caption": 0.36,
    "draw": 0.36,
    "scene_caption": 0.08,
    "scene_draw": 0.08,
    "album": 0.08,
    "two_pictures": 0.04,
}
"""A mix for pre-training: pictures with captions in both directions, and interleaved documents."""

INSTRUCT: Mapping[str, float] = {
    "describe": 0.16,
    "request": 0.26,
    "question": 0.14,
    "scene_describe": 0.06,
    "scene_request": 0.06,
    "scene_question": 0.06,
    "two_pictures": 0.04,
    "album": 0.06,
    "chat": 0.16,
}
"""A mix for instruction tuning: what users ask, in one turn or several."""


class EmojiDocuments:
    """Documents about the pictures of one split; index-addressable and endless in kind, `len` is one epoch.

    `mix` says how often each of KINDS occurs; `size` is the side of single pictures in pixels, scenes have 128. Raises
    RebusError for a split that has no pictures and for a kind that does not exist.
    """

    endless = True

    def __init__(
        self,
        pictures: Pictures,
        split: str = "train",
        seed: int = 0,
        mix: Mapping[str, float] = INSTRUCT,
        *,
        size: int = 64,
        length: int | None = None,
    ) -> None:
        unknown = [kind for kind in mix if kind not in KINDS]
        if unknown or not mix:
            raise RebusError(
                f"A mix names kinds of documents, but has {unknown or 'none'}. Choose from {', '.join(KINDS)}."
            )
        self.selection = Selection(pictures, split)
        self.seed, self.size = seed, size
        self.length = length or len(self.selection.rows)
        self._kinds, self._weights = list(mix), list(accumulate(mix.values()))

    def __len__(self) -> int:
        return self.length

    def kind(self, index: int) -> str:
        """The kind of document `index`, without making it."""
        return self._begin(index)[0]

    def __getitem__(self, index: int) -> Document:
        if index < 0:
            raise IndexError(f"documents are counted from 0, not {index}")
        kind, rng = self._begin(index)
        return KINDS[kind](self.selection, rng, self.size)

    def _begin(self, index: int) -> tuple[str, Random]:
        rng = Random(f"{self.selection.split}/{self.seed}/{index}")
        return rng.choices(self._kinds, cum_weights=self._weights)[0], rng
