"""Documents about scenes: what is where, how many, on which side; and requests to draw them."""

from __future__ import annotations

from random import Random

from rebus.data import phrases as p
from rebus.data.phrases import say, sentence
from rebus.data.scenes import NUMBERS, Scene, describe, random_scene, render
from rebus.data.selection import Selection
from rebus.data.wording import article, plural
from rebus.document import Document, Image, assistant, user


def _scene(selection: Selection, rng: Random) -> tuple[Scene, Image, str]:
    scene = random_scene(selection.things, rng)
    return scene, Image(render(selection.pictures, scene)), describe(selection.pictures, scene, rng)


def scene_caption(selection: Selection, rng: Random, size: int) -> Document:
    """A scene, then what is where: pre-training, no instruction."""
    _, image, text = _scene(selection, rng)
    return Document((user(image), assistant(text)))


def scene_draw(selection: Selection, rng: Random, size: int) -> Document:
    """What is where, then the scene: pre-training, no instruction."""
    _, image, text = _scene(selection, rng)
    return Document((user(text), assistant(image)))


def scene_describe(selection: Selection, rng: Random, size: int) -> Document:
    """`Describe the scene.` and the answer."""
    _, image, text = _scene(selection, rng)
    return Document((user(image, say(p.ASK_SCENE, rng)), assistant(sentence(say(p.SAY_SCENE, rng, scene=text)))))


def scene_request(selection: Selection, rng: Random, size: int) -> Document:
    """`Draw a cat left of a red car.` and the picture."""
    _, image, text = _scene(selection, rng)
    return Document((user(say(p.DRAW_SCENE, rng, scene=text)), assistant(image)))


def scene_question(selection: Selection, rng: Random, size: int) -> Document:
    """A question about a scene: how many, is there, which side, what is beside what, the background."""
    scene, image, _ = _scene(selection, rng)
    asked, answer = ask_about(selection, scene, rng)
    return Document((user(image, asked), assistant(answer)))


def ask_about(selection: Selection, scene: Scene, rng: Random) -> tuple[str, str]:
    """A question about the scene and its answer; yes and no are equally often right."""
    labels = [selection.pictures.label[placed.row] for placed in scene.placed]
    kinds = ["how many", "is there", "is there"]
    if scene.layout in ("beside", "stacked"):
        kinds += ["what is", "what is", "which side", "which side"]
    if scene.backdrop.pattern == "plain":
        kinds.append("background")
    match rng.choice(kinds):
        case "how many":
            label = rng.choice(labels)
            if rng.random() < 0.3:
                return "How many things are in the picture?", sentence(f"{NUMBERS[len(labels)]}.")
            return f"How many {plural(label)} are there?", sentence(f"{NUMBERS[labels.count(label)]}.")
        case "is there":
            if rng.random() < 0.5:
                return f"Is there {article(rng.choice(labels))} in the picture?", "Yes."
            row = selection.things.pick_other(set(labels), rng)
            return f"Is there {article(selection.pictures.label[row])} in the picture?", "No."
        case "what is":
            side, other = ("left", "right") if scene.layout == "beside" else ("top", "bottom")
            preposition = "on the" if scene.layout == "beside" else "at the"
            first = rng.random() < 0.5
            return f"What is {preposition} {side if first else other}?", sentence(f"{article(labels[not first])}.")
        case "which side":
            words = ("left of", "right of") if scene.layout == "beside" else ("above", "below")
            is_so, turned = rng.random() < 0.5, rng.random() < 0.5
            one, two = (labels[1], labels[0]) if turned else (labels[0], labels[1])
            relation = words[turned == is_so]
            return f"Is the {one} {relation} the {two}?", "Yes." if is_so else "No."
        case _:
            return "What colour is the background?", sentence(f"{scene.backdrop.first}.")
