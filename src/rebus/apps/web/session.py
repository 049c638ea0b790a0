"""A visitor's side of the page, without the page: the conversation, the picture that is chosen, and how a question is answered."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from rebus.apps.conversation import Conversation
from rebus.apps.memory import open_drawing
from rebus.document import Box, Document, Image, Message, Part, Role, user
from rebus.errors import RebusError
from rebus.grammar import Modality
from rebus.sampling import Sampling
from rebus.visual import ImageSampling, Progress

MAX_IMAGES = 16
"""The most pictures of one message."""

AGAIN = 0.6
"""The lowest temperature of a second try: without chance it would say the same again."""


@dataclass
class Session:
    """What the page knows of one visitor."""

    conversation: Conversation = field(default_factory=Conversation)
    """What was said."""
    chosen: Image | None = None
    """The picture that was chosen, to ask about it or to change it."""
    editing: bool = False
    """Does the next message change the chosen picture?"""
    asked: Message | None = None
    """The question that is being answered."""
    stopping: bool = False
    """Has the visitor asked for the reply to stop?"""

    def choose(self, number: int) -> None:
        """Chooses a picture of the conversation, from 1. Raises RebusError where there is none."""
        images = self.conversation.images
        if not 1 <= number <= len(images):
            raise RebusError(
                f"The conversation has {len(images)} pictures, so there is no picture {number}. Choose another."
            )
        self.chosen, self.editing = images[number - 1], False

    def number_of(self, image: Image | None) -> int | None:
        """The number of a picture in the conversation as it stands, from 1."""
        return next((number for number, own in enumerate(self.conversation.images, 1) if own is image), None)

    def drop_lost_choice(self) -> None:
        """Forgets the chosen picture when it is no part of the conversation any more."""
        if self.number_of(self.chosen) is None:
            self.chosen, self.editing = None, False


@dataclass(frozen=True)
class Reply:
    """A reply as far as it has come."""

    parts: tuple[Part, ...] = ()
    """What was said and drawn."""
    progress: Progress | None = None
    """How far the picture is that is being drawn."""


@dataclass(frozen=True)
class Question:
    """A message that can be answered."""

    message: Message
    source: PIL.Image.Image | None = None
    """the picture that is to be changed"""
    notices: tuple[str, ...] = ()
    """what the visitor should know of its pictures"""


def compose(session: Session, text: str, files: Sequence[str], system: Any) -> Question:
    """What was typed, with the files that were added and the picture that was chosen, which comes first.

    Raises RebusError for an empty message, too many pictures, an edit without words, and files that are no pictures."""
    text = text.strip()
    if len(files) > MAX_IMAGES:
        raise RebusError(
            f"A message takes {MAX_IMAGES} pictures, but this one has {len(files)}. Send some of them later."
        )
    if session.chosen is not None and session.editing and not text:
        raise RebusError("The picture is to be changed, but nothing says how. Write what should be different.")
    if not text and not files and session.chosen is None:
        raise RebusError("The message is empty, so there is nothing to answer. Write something, or add a picture.")
    opened = [_opened(file, system) for file in files]
    notices = tuple(_without_folder(notice, file) for (_, notice), file in zip(opened, files, strict=True) if notice)
    images = [image for image, _ in opened]
    if session.chosen is None:
        return Question(user(*images, *([text] if text else [])), None, notices)
    source = session.chosen.pixels if session.editing else None
    return Question(user(session.chosen, *images, *([text] if text else [])), source, notices)


def _opened(file: str, system: Any) -> tuple[Image, str | None]:
    try:
        return open_drawing(Path(file), system)
    except RebusError as error:
        raise RebusError(_without_folder(str(error), file)) from None


def _without_folder(notice: str, file: str) -> str:
    """A notice with the name of a file as its owner knows it, not where this machine keeps it."""
    return notice.replace(file, Path(file).name)


def answer(
    session: Session,
    system: Any,
    question: Question,
    *,
    modality: Modality,
    sampling: Sampling,
    seed: int,
) -> Iterator[Reply]:
    """The reply as it grows. When it is complete, the conversation has grown by it; when it is stopped or fails, or the
    iterator is closed, the model stops and the conversation is as before. Raises RebusError as the system does."""
    session.asked, session.stopping = question.message, False
    document = readable(session.conversation.document.add(question.message), system.grammar.source)
    options = {} if question.source is None else {"source": question.source}
    if system.detokenizer is not None:
        # the page has options for every model, and a model takes those that it draws by
        sampling = replace(sampling, image=sampling.image.only(system.detokenizer.settings))
    stream = system.stream(
        document, modality=modality, sampling=sampling, generator=torch.Generator().manual_seed(seed), **options
    )
    parts: tuple[Part, ...] = ()
    try:
        yield Reply()
        for piece in stream:
            if session.stopping:
                return
            if isinstance(piece, Progress):
                yield Reply(parts, piece)
                continue
            parts = _with(parts, piece)
            yield Reply(parts)
        if session.stopping:
            return
        session.conversation.add(question.message, Message("assistant", parts))
        session.chosen, session.editing, session.asked = None, False, None
        yield Reply(parts)
    finally:
        if close := getattr(stream, "close", None):
            close()


def readable(document: Document, source: str) -> Document:
    """The document with the tokens of other models taken off its pictures, which are then read from their pixels: a
    conversation may go on with another model."""

    def change(image: Image, role: Role) -> Image:
        tokens = (image.understood, image.generated)
        foreign = any(token is not None and token.source != source for token in tokens)
        return Image(image.pixels) if foreign and image.pixels is not None else image

    return document.map_images(change)


def _with(parts: tuple[Part, ...], piece: str | Image | Box) -> tuple[Part, ...]:
    if isinstance(piece, str) and parts and isinstance(parts[-1], str):
        return (*parts[:-1], parts[-1] + piece)
    return (*parts, piece.lstrip() if isinstance(piece, str) else piece)


def sampling_of(
    temperature: float,
    top_p: float,
    max_tokens: int,
    guidance: float,
    steps: int | None,
    image_guidance: float | None,
    keep: float | None,
) -> Sampling:
    """The options of the page as settings; 0 or nothing leaves a drawing option to the model. Raises RebusError for values
    out of range."""
    image = ImageSampling(steps=steps or None, guidance=image_guidance or None, image_guidance=keep or None)
    return Sampling(
        temperature=temperature, top_p=top_p, max_new_tokens=int(max_tokens), guidance=guidance, image=image
    )


def otherwise(temperature: float) -> float:
    """The temperature of a reply that is to be another one than before."""
    return max(temperature, AGAIN)


def seed_of(given: float | None) -> int:
    """The seed that was given, or a new one. Raises RebusError for one that cannot be."""
    if given is None:
        return random.randrange(2**31)
    if given != int(given) or not 0 <= given < 2**53:
        raise RebusError(
            f"A seed is a whole number from 0 on, but this one is {given}. Leave it empty for a new one each time."
        )
    return int(given)
