"""Documents that point: captions with boxes, where something is, what is in a box, small things in a large picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from rebus.data import phrases as p
from rebus.data.backdrops import random_backdrop
from rebus.data.phrases import say, sentence
from rebus.data.scenes import PLACES, Placed, Scene, exact_box, random_scene, render
from rebus.data.selection import Selection
from rebus.data.wording import article
from rebus.document import Document, Image, Part, assistant, user

SMALL = (22, 30)
"""Least and largest side of small things, of 128 pixels: 11 to 15 in a view of the whole at 64."""


def scene_boxes(selection: Selection, rng: Random, size: int) -> Document:
    """A scene, then what it shows, each thing with its box: pre-training, no instruction."""
    scene = random_scene(selection.things, rng)
    parts: list[Part] = []
    for number, placed in enumerate(scene.placed):
        parts += [(", " if number else "") + article(selection.pictures.label[placed.row]) + " "]
        parts += [exact_box(selection.pictures, placed)]
    return Document((user(Image(render(selection.pictures, scene))), assistant(*parts)))


def where(selection: Selection, rng: Random, size: int) -> Document:
    """`Where is the cat?`, answered by its box."""
    scene, placed = one_of_a_kind(selection, rng)
    asked = say(p.ASK_WHERE, rng, name=selection.pictures.label[placed.row])
    shown = Image(render(selection.pictures, scene))
    return Document((user(shown, asked), assistant(exact_box(selection.pictures, placed))))


def what_there(selection: Selection, rng: Random, size: int) -> Document:
    """`What is here?` with a box, answered by a name."""
    scene = random_scene(selection.things, rng)
    placed = rng.choice(scene.placed)
    shown, box = Image(render(selection.pictures, scene)), exact_box(selection.pictures, placed)
    answer = sentence(f"{article(selection.pictures.label[placed.row])}.")
    return Document((user(shown, f"{rng.choice(p.ASK_THERE)} ", box), assistant(answer)))


def small_thing(selection: Selection, rng: Random, size: int) -> Document:
    """`What is in the top left corner?` of a large picture with small things."""
    scene, (place, placed) = small_scene(selection, rng)
    answer = sentence(f"{article(selection.pictures.label[placed.row])}.")
    return Document((user(Image(render(selection.pictures, scene)), f"What is {place}?"), assistant(answer)))


def one_of_a_kind(selection: Selection, rng: Random) -> tuple[Scene, Placed]:
    """A scene, and a thing in it of which there is one. Where all are alike, one is left."""
    scene = random_scene(selection.things, rng)
    names = [selection.pictures.label[placed.row] for placed in scene.placed]
    alone = [placed for placed, name in zip(scene.placed, names, strict=True) if Counter(names)[name] == 1]
    if not alone:
        alone = [scene.placed[0]]
        scene = replace(scene, placed=tuple(alone))
    return scene, rng.choice(alone)


def small_scene(selection: Selection, rng: Random) -> tuple[Scene, tuple[str, Placed]]:
    """Three to five small things, each at a place that has a name; and one of them with this name."""
    places = rng.sample(list(PLACES), rng.randint(3, 5))
    rows = selection.things.pick(rng, len(places))
    placed = {place: Placed(row, *PLACES[place], rng.randint(*SMALL)) for place, row in zip(places, rows, strict=False)}
    scene = Scene("corners", tuple(placed.values()), random_backdrop(rng, white=0.6, plain=0.3))
    return scene, rng.choice(list(placed.items()))
