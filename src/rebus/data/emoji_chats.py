"""Documents with several pictures: picture books, comparisons, and conversations of several turns."""

from __future__ import annotations

from random import Random

from rebus.data import phrases as p
from rebus.data.emoji_scenes import ask_about
from rebus.data.phrases import say, sentence
from rebus.data.scenes import NUMBERS, describe, random_scene, render
from rebus.data.selection import Selection
from rebus.data.wording import GROUPS
from rebus.document import Document, Image, Message, Part, assistant, user


def album(selection: Selection, rng: Random, size: int) -> Document:
    """A picture book: a reply in which sentences and pictures take turns."""
    if rng.random() < 0.4:
        one = selection.pick(rng)
        rows = [one, selection.something_else(one, rng)]
        asked = say(p.ASK_BOTH, rng, a=selection.name(rows[0]), b=selection.name(rows[1]))
    else:
        group = rng.choice(selection.groups)
        rows = selection.pick_from(group, rng, rng.randint(2, 3))
        asked = say(p.ASK_ALBUM, rng, group=GROUPS[group], count=NUMBERS[len(rows)])
    parts: list[Part] = []
    for number, row in enumerate(rows):
        name = selection.name(row)
        words = say(p.THEN_COMES if number else p.FIRST_COMES, rng, a=name, A=sentence(name))
        parts += [words, selection.image(row, size)]
    return Document((user(asked), assistant(*parts)))


def two_pictures(selection: Selection, rng: Random, size: int) -> Document:
    """Two pictures and a question about both."""
    one = selection.pick(rng)
    two = selection.something_else(one, rng)
    names = {"a": selection.name(one), "b": selection.name(two)}
    images = (selection.image(one, size), selection.image(two, size))
    if rng.random() < 0.5:
        return Document((user(*images, say(p.ASK_TWO, rng)), assistant(say(p.SAY_TWO, rng, **names))))
    first = rng.random() < 0.5
    asked = say(p.ASK_WHICH, rng, a=names["a" if first else "b"])
    return Document((user(*images, asked), assistant("The first." if first else "The second.")))


def chat(selection: Selection, rng: Random, size: int) -> Document:
    """A conversation: a greeting perhaps, one or two topics of several turns each, thanks perhaps."""
    messages: list[Message] = []
    if rng.random() < 0.3:
        messages += [user(say(p.HELLO, rng)), assistant(say(p.HELLO_BACK, rng))]
    for _ in range(rng.choice((1, 1, 2))):
        topic = rng.choices((_about_a_picture, _drawing, _about_a_scene, _from_a_group), weights=(4, 4, 2, 1))[0]
        messages += topic(selection, rng, size)
    if rng.random() < 0.2:
        messages += [user(say(p.THANKS, rng)), assistant(say(p.WELCOME, rng))]
    return Document(tuple(messages))


def _about_a_picture(selection: Selection, rng: Random, size: int) -> list[Message]:
    """The user shows a picture, asks twice, and perhaps wants it in another style."""
    row = selection.pick(rng)
    name, style = selection.name(row), selection.style(row)
    told = say(p.SAY_WHAT, rng, a=name, style=style)
    messages = [user(selection.image(row, size), say(p.ASK_WHAT, rng)), assistant(told)]
    match rng.choice(("style", "group", "if")):
        case "style":
            messages += [user(say(p.ASK_STYLE, rng)), assistant(sentence(say(p.SAY_STYLE, rng, style=style)))]
        case "group":
            group = GROUPS[selection.pictures.group[row]]
            messages += [user(say(p.ASK_GROUP, rng)), assistant(say(p.SAY_GROUP, rng, group=group))]
        case _:
            is_so = rng.random() < 0.5
            meant = row if is_so else selection.something_else(row, rng)
            answer = say(p.YES if is_so else p.NO, rng, a=name)
            messages += [user(say(p.ASK_IF, rng, a=selection.name(meant))), assistant(answer)]
    return messages + (_again_in_style(selection, row, rng, size) if rng.random() < 0.7 else [])


def _drawing(selection: Selection, rng: Random, size: int) -> list[Message]:
    """The user wants a picture, then perhaps the same in another style, and asks what it was."""
    row = selection.pick(rng)
    name, style = selection.name(row), selection.style(row)
    templates = p.DRAW if rng.random() < 0.4 else p.DRAW_IN_STYLE
    image = selection.image(row, size)
    reply = (image,) if rng.random() < 0.6 else (say(p.HERE_IS, rng, a=name), image)
    asked = sentence(say(templates, rng, a=selection.wish(row, rng), style=style))
    messages = [user(asked), assistant(*reply)]
    if rng.random() < 0.8:
        messages += _again_in_style(selection, row, rng, size)
    if rng.random() < 0.4:
        messages += [user(say(p.ASK_WHAT_YOU_DREW, rng)), assistant(say(p.SAY_WHAT_I_DREW, rng, a=name))]
    return messages


def _again_in_style(selection: Selection, row: int, rng: Random, size: int) -> list[Message]:
    """`Draw the same in … style.`, if this split has it in another style."""
    other = selection.in_other_style(row, rng)
    if other is None:
        return []
    image = selection.image(other, size)
    reply = (image,) if rng.random() < 0.7 else (say(p.HERE_IS, rng, a=selection.name(other)), image)
    return [user(say(p.AGAIN_IN_STYLE, rng, style=selection.style(other))), assistant(*reply)]


def _about_a_scene(selection: Selection, rng: Random, size: int) -> list[Message]:
    """The user shows a scene and asks about it."""
    scene = random_scene(selection.things, rng)
    image = Image(render(selection.pictures, scene))
    text = describe(selection.pictures, scene, rng)
    messages = [
        user(image, say(p.ASK_SCENE, rng)),
        assistant(sentence(say(p.SAY_SCENE, rng, scene=text))),
    ]
    for _ in range(rng.randint(1, 2)):
        asked, answer = ask_about(selection, scene, rng)
        messages += [user(asked), assistant(answer)]
    return messages


def _from_a_group(selection: Selection, rng: Random, size: int) -> list[Message]:
    """The user leaves the choice to the model."""
    group = rng.choice(selection.groups)
    row = selection.pick_from(group, rng, 1)[0]
    name = selection.name(row)
    asked = user(say(p.DRAW_FROM_GROUP, rng, group=GROUPS[group]))
    drawn = [asked, assistant(say(p.HERE_IS, rng, a=name), selection.image(row, size))]
    return drawn + (_again_in_style(selection, row, rng, size) if rng.random() < 0.5 else [])
