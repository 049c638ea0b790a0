"""The sentences that users and assistants say about pictures, as templates; `{a}` is a name with its article."""

from __future__ import annotations

import re
from random import Random

CAPTIONS = (
    "{a}",
    "{a}",
    "a picture of {a}",
    "{a}, drawn in {style} style",
    "{a}, drawn in {style} style",
    "{a} in {style} style",
    "{a}, {style} style",
    "a picture of {a} in {style} style",
    "an emoji that shows {a}, in {style} style",
)
CAPTIONS_WITH_WORDS = (
    "{a} ({words})",
    "{a}; {words}",
    "{a}, drawn in {style} style ({words})",
    "{words}: {a}",
)

ASK_WHAT = (
    "What is this?",
    "What do you see?",
    "What is in this picture?",
    "What does the picture show?",
    "Describe this picture.",
    "Describe the image in a few words.",
    "Please tell me what this is.",
    "Can you tell me what you see here?",
    "Caption this image.",
)
SAY_WHAT = (
    "This is {a}.",
    "It is {a}.",
    "The picture shows {a}.",
    "I see {a}.",
    "This is {a}, drawn in {style} style.",
    "The picture shows {a} in {style} style.",
)
ASK_STYLE = (
    "Which style is this drawn in?",
    "What style is this?",
    "In which emoji style is it drawn?",
    "Whose style is this?",
)
SAY_STYLE = ("It is drawn in {style} style.", "This is {style} style.", "{style} style.")
ASK_GROUP = (
    "Which group does this belong to?",
    "What kind of thing is this?",
    "Which category fits this picture?",
)
SAY_GROUP = ("It belongs to {group}.", "This belongs to {group}.", "The group is {group}.")
ASK_WORDS = (
    "Which words go with this picture?",
    "Name a few keywords for this image.",
    "What does this make you think of?",
)
SAY_WORDS = ("{words}.", "Some words that fit: {words}.", "It goes with {words}.")
ASK_IF = ("Is this {a}?", "Does this show {a}?", "Is it {a} that is shown here?", "Is there {a} in the picture?")
YES = ("Yes.", "Yes, it is {a}.", "Yes, it shows {a}.")
NO = ("No.", "No, it is {a}.", "No, it shows {a}.")
ASK_IF_STYLE = ("Is this drawn in {style} style?", "Is this {style} style?")

DRAW = (
    "Draw {a}.",
    "Draw {a}.",
    "Please draw {a}.",
    "Can you draw {a}?",
    "Show me {a}.",
    "Make a picture of {a}.",
    "I would like a picture of {a}.",
    "Paint {a}, please.",
    "Create an image of {a}.",
    "Could you draw {a} for me?",
)
DRAW_IN_STYLE = (
    "Draw {a} in {style} style.",
    "Draw {a} in {style} style.",
    "Please draw {a}, {style} style.",
    "Can you draw {a} in {style} style?",
    "Make a picture of {a} in {style} style.",
    "Show me {a}, drawn in {style} style.",
    "{a} in {style} style, please.",
)
HERE_IS = ("Here is {a}: ", "Here you are: ", "Sure, here is {a}: ", "This is {a}: ")
AGAIN_IN_STYLE = (
    "Draw the same in {style} style.",
    "Now draw it in {style} style.",
    "Can you draw that in {style} style?",
    "The same again, but {style} style, please.",
    "How does it look in {style} style?",
)
ASK_WHAT_YOU_DREW = ("What did you draw?", "What is that?", "What does your picture show?")
SAY_WHAT_I_DREW = ("I drew {a}.", "That is {a}.", "My picture shows {a}.")
HELLO = ("Hello!", "Hi!", "Hi there.", "Good morning!", "Hello, can you help me with pictures?")
HELLO_BACK = (
    "Hello! Show me a picture, or tell me what to draw.",
    "Hi! What shall I look at or draw?",
    "Hello! I can describe pictures and draw them.",
)
THANKS = ("Thank you!", "Thanks.", "Nice, thank you.")
WELCOME = ("You are welcome.", "With pleasure.", "Gladly. Shall I draw something else?")
ASK_ALBUM = (
    "Show me something from {group}, with pictures.",
    "Make a small picture book about {group}.",
    "Write about {group} and draw each thing you name.",
    "Give me {count} examples from {group}, each with a picture.",
)
FIRST_COMES = ("Here is {a}: ", "{A}: ", "First, {a}: ")
THEN_COMES = (" And here is {a}: ", " {A}: ", " Then {a}: ")
ASK_BOTH = ("Draw {a} and {b}.", "Show me {a} and {b}, one after the other.", "I need a picture of {a} and one of {b}.")
ASK_TWO = (
    "What do these two pictures show?",
    "Describe the two pictures.",
    "What is in the first picture, and what in the second?",
)
SAY_TWO = ("The first shows {a}, the second {b}.", "First {a}, then {b}.", "The pictures show {a} and {b}.")
ASK_WHICH = ("Which of the two shows {a}?", "Is {a} in the first or in the second picture?")
DRAW_FROM_GROUP = (
    "Draw something from {group}.",
    "Surprise me with a picture from {group}.",
    "Draw anything from {group}.",
)

ASK_SCENE = (
    "What do you see in this picture?",
    "Describe the scene.",
    "What is where in this picture?",
    "Describe this image.",
)
SAY_SCENE = ("{scene}.", "The picture shows {scene}.", "I see {scene}.")
DRAW_SCENE = (
    "Draw {scene}.",
    "Please draw {scene}.",
    "Make a picture of this: {scene}.",
    "Can you draw this: {scene}?",
)
ASK_WHERE = ("Where is the {name}?", "Where is the {name}?", "Point at the {name}.", "Find the {name}.")
ASK_THERE = ("What is here?", "What is in this box?", "What do you see there?")
ASK_READ = ("What does it say?", "Read the text.", "What is written here?")
ASK_STORY = (
    "Tell a story about {a} in {count} pictures.",
    "Tell me a story about {a}, with {count} pictures.",
    "Make a picture story about {a} in {count} pictures.",
)
ASK_SLIDE = ("Make a slide about {title} with {things}.", "I need a slide with the title {title} that shows {things}.")
ASK_SLIDE_LAYOUT = (
    "Lay out a slide about {title} with {things}.",
    "Where does what go on a slide about {title} with {things}?",
)
READ_SLIDE = ("What is where on this slide?", "Describe the layout of this slide.")
ASK_WEAR = (
    "Put the {item} {place}.",
    "Add the {item} of the first picture {place}.",
    "Let the {one} have the {item} {place}.",
)


_SINGULAR = re.compile(r"\bis( this| it| there)? \{[ab]\}", re.I)
"""Templates that do not go with `grapes`; every tuple of templates has others."""


def say(templates: tuple[str, ...], rng: Random, **words: str) -> str:
    """One of the templates, filled in."""
    if any(words.get(key, "a ").split()[0] not in ("a", "an", "the") for key in "ab"):
        templates = tuple(template for template in templates if not _SINGULAR.search(template))
    return rng.choice(templates).format(**words)


def sentence(text: str) -> str:
    """The same with a capital."""
    return text[:1].upper() + text[1:]
