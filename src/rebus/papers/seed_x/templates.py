"""How SEED-X words the records of its training sets (section 3.3 and the published loaders).

A record's fields are named with each template. Of the lists that the loaders draw from a few phrasings stand here; where an
image stands before or after what is asked is a coin, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from rebus.data.layouts import plain_text, turns
from rebus.data.lines import Unreadable
from rebus.data.records import Record, Template
from rebus.document import Document, Image, Message, Part, assistant, user
from rebus.errors import RebusError
from rebus.papers.seed_x.boxes import split_boxes

IMAGE_FIRST = 0.1
"""How often a caption follows its image in pre-training; else the image is drawn after it."""
LOCATIONS = 224
DRAWINGS = (
    ("Please show me a picture of", "Here is a picture."),
    ("Generate an image:", "Here it is."),
    ("I would like to see", "Here is what you asked for."),
    ("Draw", "Done."),
)
EDITS = ("", "Here is the edited picture.", "I have changed it.", "Done.", "Here you are.")


def caption(record: Record, rng: Random) -> Document:
    """`text`: one time in ten the picture and its caption, else the caption and the picture."""
    (image, *_), text = record.pictures(1), record.text("text")
    if rng.random() < IMAGE_FIRST:
        return Document((user(image), assistant(text)))
    return Document((user(text), assistant(image)))


def grounded(record: Record, rng: Random) -> Document:
    """`text`, in which boxes are written out (`a cat <box_start><loc-112>…<box_end>`), after its picture."""
    return Document((user(record.pictures(1)[0]), assistant(*_boxed(record.text("text")))))


def question(record: Record, rng: Random) -> Document:
    """`question` (left out: none) and `answer`, or `text`, about a picture; both may hold boxes."""
    answer = record.text("answer" if "answer" in record.fields else "text")
    asked = _boxed(record.text("question")) if "question" in record.fields else ()
    return Document((user(*_shown(record.pictures(1), asked, rng)), assistant(*_boxed(answer))))


def dialog(record: Record, rng: Random) -> Document:
    """`turns`, or `question` and `answer` that are several; with its pictures, if it has some, in the first turn."""
    if record.images:
        document = turns(record, rng)
        first, *rest = document.messages
        asked = [part for part in first.content if not isinstance(part, Image)]
        messages: list[Message] = [user(*_shown(record.images, asked, rng)), *rest]
    else:
        said = record.fields.get("turns")
        if not isinstance(said, list) or len(said) < 2 or len(said) % 2 or not all(isinstance(s, str) for s in said):
            raise Unreadable("A dialog without a picture needs `turns`, questions and answers. It is skipped.")
        messages = [(user, assistant)[at % 2](text.strip()) for at, text in enumerate(said)]
    return Document(
        tuple(
            Message(m.role, tuple(p for part in m.content for p in (_boxed(part) if isinstance(part, str) else [part])))
            for m in messages
        )
    )


def draw(record: Record, rng: Random) -> Document:
    """`text`: a wish for the picture, a few words and the picture."""
    asked, answer = rng.choice(DRAWINGS)
    return Document((user(f"{asked} {record.text('text')}"), assistant(f"{answer} ", record.pictures(1)[0])))


def edit(record: Record, rng: Random) -> Document:
    """`instruction`, and `response` where the record has one: the picture before, the picture after. `instructions`, as many as
    there are pictures but one: edits that follow each other, as far as a number of rounds that is drawn."""
    several = record.fields.get("instructions")
    if isinstance(several, list):
        return edits(record, [str(text).strip() for text in several], rng)
    before, after, *_ = record.pictures(2)
    response = record.text("response") if "response" in record.fields else rng.choice(EDITS)
    shown = _shown((before,), (record.text("instruction"),), rng)
    return Document((user(*shown), assistant(*([f"{response} "] if response else []), after)))


def edits(record: Record, instructions: list[str], rng: Random) -> Document:
    """Rounds of editing, the last of which is learned: what earlier ones drew is read."""
    images = record.pictures(len(instructions) + 1)
    if not instructions:
        raise Unreadable("Rounds of editing need an instruction each, but there is none. The record is skipped.")
    messages: list[Message] = []
    for number in range(rng.randint(1, len(instructions))):
        shown: tuple[Part, ...] = (images[0],) if number == 0 else ()
        messages += [user(*shown, instructions[number]), assistant(images[number + 1])]
    return Document(tuple(messages))


def story(record: Record, rng: Random) -> Document:
    """`captions`, one for each picture: what was told and shown, then a caption and the picture that is to be drawn."""
    images, captions = record.pictures(2), record.fields.get("captions")
    if not isinstance(captions, list) or len(captions) != len(images):
        raise Unreadable(f"A story needs a caption for each of its {len(images)} pictures. It is skipped.")
    told = [str(text).strip() for text in captions]
    last = rng.randint(1, len(images) - 1)
    shown: list[Part] = []
    for text, image in zip(told[:last], images[:last], strict=True):
        shown += [f"{text} ", image]
    return Document((user(*shown), assistant(f"{told[last]} ", images[last])))


def layout(record: Record, rng: Random) -> Document:
    """`question` and `layout`, in which boxes are written out: where title, texts and pictures of a slide go. A record with a
    picture has it before the question."""
    asked = record.text("question") if "question" in record.fields else "What is where on this slide?"
    return Document((user(*record.images, asked), assistant(*_boxed(record.text("layout")))))


def wear(record: Record, rng: Random) -> Document:
    """`instruction` (left out: one of ours), and three pictures: the clothes, the person, the person in the clothes."""
    clothes, person, after, *_ = record.pictures(3)
    asked = record.text("instruction") if "instruction" in record.fields else "Let the person wear this."
    return Document((user(clothes, person, asked), assistant(after)))


def _shown(images: tuple[Image, ...], asked: Sequence[Part], rng: Random) -> tuple[Part, ...]:
    """Images before what is asked, or after it."""
    return (*images, *asked) if not asked or rng.random() < 0.5 else (*asked, *images)


def _boxed(text: str) -> tuple[Part, ...]:
    """Text and boxes of text in which boxes are written out; damaged ones make the record unreadable."""
    try:
        return split_boxes(text, LOCATIONS)
    except RebusError as error:
        raise Unreadable(f"{error} The record is skipped.") from None


TEMPLATES: Mapping[str, Template] = {
    "caption": caption,
    "grounded": grounded,
    "question": question,
    "turns": dialog,
    "text": plain_text,
    "draw": draw,
    "edit": edit,
    "story": story,
    "layout": layout,
    "wear": wear,
}
"""Every template by the name that the mixtures give it."""
