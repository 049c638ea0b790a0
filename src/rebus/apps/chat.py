"""A conversation in the terminal: lines in, replies of text and pictures out, and commands that begin with a slash."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from rebus.apps.files import save_document
from rebus.apps.terminal import keep_in, picture, show
from rebus.document import Document, Image, Message, Part, user
from rebus.errors import RebusError
from rebus.images import open_image

HELP = """\
Write a message and press Enter. A path to a picture in it becomes the picture: what is in cat.png?
  /draw TEXT     answer with a picture and nothing else
  /image PATH    put a picture into the next message
  /undo          take the last exchange back
  /new           begin a new conversation
  /save FILE     keep the conversation, as .json or as a web page (.html)
  /help          this text
  /quit          leave (or Ctrl-D); Ctrl-C stops a reply"""

PICTURE_PATH = re.compile(
    r"""(?P<quote>["'])(?P<quoted>[^"']+?\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif))(?P=quote)
      | (?P<bare>(?:\\\ |[^\s"'])+\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif))(?=[\s.,;:!?)]|$)""",
    re.IGNORECASE | re.VERBOSE,
)


def read_message(line: str, waiting: Iterable[Image] = ()) -> Message:
    """A typed line as a user's message: paths of pictures in it become the pictures, after those already `waiting`.

    Raises RebusError for an empty message and for a path that cannot be opened.
    """
    parts: list[Part] = list(waiting)
    end = 0
    for found in PICTURE_PATH.finditer(line):
        path = found["quoted"] or found["bare"].replace("\\ ", " ")
        image = Image(open_image(Path(path).expanduser()))
        parts += [text for text in [line[end : found.start()].strip()] if text]
        parts.append(image)
        end = found.end()
    parts += [text for text in [line[end:].strip()] if text]
    if not parts:
        raise RebusError("The message is empty, so there is nothing to answer. Write something, or /help.")
    return user(*parts)


@dataclass
class Chat:
    """A conversation with a System, which grows by whole exchanges only."""

    system: Any
    """The System that answers."""
    console: Console
    """Where it is shown."""
    folder: Path
    """Where generated pictures are saved."""
    generator: torch.Generator
    """What sampling and drawing draw from."""
    sampling: Any
    """How replies are sampled."""
    document: Document = Document(())
    """The conversation so far."""
    waiting: list[Image] = field(default_factory=list)
    """Pictures for the next message."""

    def run(self, read_line: Callable[[], str]) -> None:
        """Reads lines and answers them until /quit or the end of the input. Errors are shown and the chat goes on."""
        self.console.print("Write a message; /help lists what else can be typed.", style="dim")
        while True:
            try:
                line = read_line().strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                if line:
                    self.take(line)
            except RebusError as error:
                self.console.print(Text(str(error), "red"), soft_wrap=True)
            except KeyboardInterrupt:
                self.console.print("stopped; the message was taken back", style="dim")

    def take(self, line: str) -> None:
        """Does what one line says."""
        command, _, rest = line.partition(" ")
        match command:
            case "/help":
                self.console.print(HELP, markup=False, highlight=False)
            case "/image":
                self.attach(_path_after(command, rest))
            case "/draw":
                self.answer(read_message(rest, self.waiting), "image")
            case "/undo":
                self.undo()
            case "/new":
                self.document, self.waiting = Document(()), []
                self.console.print("a new conversation", style="dim")
            case "/save":
                file = save_document(self.document, _path_after(command, rest))
                self.console.print(Text(f"saved as {file}", "dim"), soft_wrap=True)
            case _ if line.startswith("/") and not PICTURE_PATH.match(line):
                raise RebusError(f"There is no command {command}. /help lists those that there are.")
            case _:
                self.answer(read_message(line, self.waiting), "any")

    def attach(self, path: Path) -> None:
        """Opens a picture for the next message and shows it."""
        image = open_image(path)
        self.waiting.append(Image(image))
        self.console.print(picture(image, self.console), end="")
        self.console.print("now write what you want to know about it", style="dim")

    def answer(self, message: Message, modality: str) -> None:
        """Asks the system and shows its reply."""
        asked = self.document.add(message)
        stream = self.system.stream(asked, modality=modality, sampling=self.sampling, generator=self.generator)
        parts = show(stream, self.console, keep_in(self.folder))
        self.document, self.waiting = asked.add(Message("assistant", parts)), []

    def undo(self) -> None:
        """Takes the last exchange back."""
        if not self.document.messages:
            raise RebusError("The conversation is empty, so nothing can be taken back. Write a message first.")
        question = self.document.messages[-2]
        self.document = Document(self.document.messages[:-2])
        self.console.print(Text(f"taken back: {question.text or 'a picture'}", "dim"), soft_wrap=True)


def _path_after(command: str, rest: str) -> Path:
    with contextlib.suppress(ValueError):  # an unpaired quote is part of the name
        rest = " ".join(shlex.split(rest))
    if not rest.strip():
        raise RebusError(f"{command} needs a path after it, but there is none. For example: {command} picture.png")
    return Path(rest.strip()).expanduser()
