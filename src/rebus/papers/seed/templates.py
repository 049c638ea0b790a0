"""How SEED-LLaMA words the records of its training sets (SEED-LLaMA sections 3.2 and 3.3; the strings are those of the
published data pipes, their spelling included).

Where a pipe draws from several phrasings, those known to be published are here: five of twenty for drawing, three of
six for editing. A record's fields are named with each template.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from rebus.data.layouts import ended, plain_text, turns
from rebus.data.lines import Unreadable
from rebus.data.records import Record, Template
from rebus.document import Document, Part, assistant, user

DRAWINGS = (
    ("Show me a photograph of {}.", "Here is a photograph."),
    ("Please draw a painting of {}.", "Here's a painting."),
    ("Please design an image of {}.", "I have designed an image."),
    ("I'd like to view an image of {}.", "Take a look at this image."),
    ("Can you show me an illustration of {}?", "Sure, please enjoy this illustration."),
)
EDITS = ("I have generated an image.", "I have created an image.", "Here is a picture.")
DESCRIBE = "Describe this image."
"""Our choice: what is asked of a picture whose record has only a caption."""


def read_or_write(record: Record, rng: Random) -> Document:
    """`text`: the picture and its caption, either of them first."""
    (image, *_), text = record.pictures(1), record.text("text")
    return Document((user(image), assistant(text)) if rng.random() < 0.5 else (user(text), assistant(image)))


def video_caption(record: Record, rng: Random) -> Document:
    """`text`: the frames, then what happens in them."""
    return Document((user(*record.pictures(1)), assistant(record.text("text"))))


def question(record: Record, rng: Random) -> Document:
    """`question` and `answer` about one picture or the frames of a video."""
    return Document((user(*record.pictures(1), record.text("question")), assistant(ended(record.text("answer")))))


def describe(record: Record, rng: Random) -> Document:
    """`text`, and `question` where there is one: what a picture or the frames of a video show is asked."""
    asked = record.text("question") if "question" in record.fields else DESCRIBE
    return Document((user(*record.pictures(1), asked), assistant(ended(record.text("text")))))


def draw(record: Record, rng: Random) -> Document:
    """`text`: a wish for the picture, and the picture."""
    asked, answer = rng.choice(DRAWINGS)
    return Document((user(asked.format(record.text("text").rstrip("."))), assistant(answer, *record.pictures(1)[:1])))


def describe_or_draw(record: Record, rng: Random) -> Document:
    """`text`, and `question` where there is one: half of the time what the picture shows is asked, else it is drawn."""
    if rng.random() < 0.5:
        return draw(record, rng)
    return describe(record, rng)


def edit(record: Record, rng: Random) -> Document:
    """`instruction`, and `response` where the record has one: the picture before, the picture after."""
    before, after, *_ = record.pictures(2)
    response = record.text("response") if "response" in record.fields else rng.choice(EDITS)
    return Document((user(before, record.text("instruction")), assistant(response, after)))


def difference(record: Record, rng: Random) -> Document:
    """`question` and `answer` about `image A` and `image B`."""
    first, second, *_ = record.pictures(2)

    def named(text: str) -> str:
        return text.replace("image A", "the first image").replace("image B", "the second image")

    one, two = "This is the first image.", "This is the second image."
    asked = named(record.text("question"))
    shown: tuple[Part, ...] = (one, first, two, second, asked)
    if rng.random() < 0.5:
        shown = (first, one, second, f"{two} {asked}")
    return Document((user(*shown), assistant(ended(named(record.text("answer"))))))


def story(record: Record, rng: Random) -> Document:
    """`captions`, one for each picture: told on picture by picture, or all at once."""
    pictures, captions = record.pictures(2), record.fields.get("captions")
    if not isinstance(captions, list) or len(captions) != len(pictures):
        raise Unreadable(f"A story needs a caption for each of its {len(pictures)} pictures. It is skipped.")
    told = [str(caption).strip() for caption in captions]
    if rng.random() < 0.5:
        asked: list[Part] = [told[0], pictures[0], f"{told[1]} Please generate an image."]
        messages = [user(*asked), assistant("Here is an image.", pictures[1])]
        for caption, picture in zip(told[2:], pictures[2:], strict=True):
            messages += [user(f"{caption} Please generate an image."), assistant("Here is an image.", picture)]
        return Document(tuple(messages))
    wish = "Through pictures and text, let me know what will happen later."
    reply: list[Part] = ["Please see the pictutres and text to know what will happen later."]  # sic
    for caption, picture in zip(told[1:], pictures[1:], strict=True):
        reply += [f"\n{caption}", picture]
    return Document((user(told[0], pictures[0], wish), assistant(*reply)))


TEMPLATES: Mapping[str, Template] = {
    "caption": read_or_write,
    "video": video_caption,
    "text": plain_text,
    "question": question,
    "turns": turns,
    "describe": describe,
    "draw": draw,
    "describe or draw": describe_or_draw,
    "edit": edit,
    "difference": difference,
    "story": story,
}
"""Every template by the name that the mixtures give it."""
