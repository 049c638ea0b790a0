"""Stories: one character through several scenes, told at once in sentences and pictures, or turn by turn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

from rebus.data import phrases as p
from rebus.data.backdrops import COLOURS, Backdrop
from rebus.data.phrases import say, sentence
from rebus.data.scenes import Placed, Scene, render
from rebus.data.selection import Selection
from rebus.data.wording import article
from rebus.document import Document, Image, Message, Part, assistant, user

COUNT_WORDS = ("no", "one", "two", "three", "four", "five")
_MEETS = (
    "The {one} finds {other}.",
    "The {one} sees {other}.",
    "Here is the {one} with {other}.",
    "Then {other} comes.",
)
_GOES = ("The {one} goes to a {colour} place.", "Now all around the {one} is {colour}.")
_BEGINS = ("Here is the {one}.", "This is the {one}.", "Once there was {a}.")
_ENDS = ("The {one} goes home.", "The {one} is happy.", "And so the {one} sleeps well.")


@dataclass(frozen=True)
class Story:
    """A character and what happens to it."""

    row: int
    """The character's picture."""
    name: str
    """What it is called, without an article."""
    sentences: tuple[str, ...]
    """One for each scene."""
    scenes: tuple[Scene, ...]
    """The character stands first in each."""


@lru_cache(maxsize=4)
def characters(selection: Selection) -> list[int]:
    """Rows of pictures that stories may be about: animals, or what may stand in scenes where there are none."""
    animals = [row for row in selection.things.rows if selection.pictures.subgroup[row].startswith("animal")]
    return animals or selection.things.rows


def make_story(selection: Selection, rng: Random, count: int) -> Story:
    """A story in `count` scenes. The backdrops are plain, so that what stands on them can be told apart."""
    row = rng.choice(characters(selection))
    name = selection.pictures.label[row]
    colour, sentences, scenes = "white", [], []
    for number in range(count):
        others: list[Placed] = []
        last = number == count - 1
        if number == 0:
            text = rng.choice(_BEGINS).format(one=name, a=article(name))
        elif last and rng.random() < 0.5:
            text = rng.choice(_ENDS).format(one=name)
        elif rng.random() < 0.3:
            colour = rng.choice([other for other in COLOURS if other not in (colour, "black")])
            text = rng.choice(_GOES).format(one=name, colour=colour)
        else:
            other = selection.things.pick_other({name}, rng)
            text = rng.choice(_MEETS).format(one=name, other=article(selection.pictures.label[other]))
            others = [Placed(other, 94, 64 + rng.randint(-8, 8), rng.randint(40, 52))]
        x = 36 if others else 64
        placed = (Placed(row, x, 64 + rng.randint(-6, 6), rng.randint(56, 66)), *others)
        sentences.append(sentence(text))
        scenes.append(Scene("beside" if others else "one", placed, Backdrop("plain", colour)))
    return Story(row, name, tuple(sentences), tuple(scenes))


def pictures_of(selection: Selection, story: Story, size: int) -> list[Image]:
    """Its scenes, `size` pixels square."""
    drawn = [render(selection.pictures, scene) for scene in story.scenes]
    return [Image(image if image.width == size else image.resize((size, size))) for image in drawn]


def story(selection: Selection, rng: Random, size: int) -> Document:
    """`Tell a story about a cat in five pictures.`, answered by sentences and pictures by turns."""
    count = rng.randint(2, 5)
    made = make_story(selection, rng, count)
    asked = say(p.ASK_STORY, rng, a=article(made.name), count=COUNT_WORDS[count])
    parts: list[Part] = []
    for number, (text, image) in enumerate(zip(made.sentences, pictures_of(selection, made, size), strict=True)):
        parts += [(" " if number else "") + text + " ", image]
    return Document((user(asked), assistant(*parts)))


def story_turns(selection: Selection, rng: Random, size: int) -> Document:
    """A story whose sentences the user says one by one, each answered by its picture; the last is what is learned to draw,
    those before it are read."""
    made = make_story(selection, rng, rng.randint(1, 5))
    messages: list[Message] = []
    for text, image in zip(made.sentences, pictures_of(selection, made, size), strict=True):
        messages += [user(f"{text} Draw it." if messages else f"A story. {text} Draw it."), assistant(image)]
    return Document(tuple(messages))
