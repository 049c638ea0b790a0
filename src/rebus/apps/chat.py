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

from rebus.apps.conversation import Conversation
from rebus.apps.files import open_conversation, save_conversation
from rebus.apps.memory import open_drawing
from rebus.apps.terminal import CONTROL, keep_in, picture, show
from rebus.document import Image, Message, Part, user
from rebus.errors import RebusError
from rebus.images import open_image

HELP = """\
Write a message and press Enter. A path to a picture in it becomes the picture: what is in cat.png?
  /draw TEXT     answer with a picture and nothing else
  /image PATH    put a picture into the next message
  /undo          take the last exchange back
  /back N        go back to behind turn N; what you say next begins a branch
  /branches      list the branches; /branch N goes on with one of them
  /new           begin a new conversation
  /save FILE     keep the conversation, as .json or as a web page (.html)
  /open FILE     go on with a conversation that was kept as .json
  /help          this text
  /quit          leave (or Ctrl-D); Ctrl-C stops a reply"""

PICTURE_PATH = re.compile(
    r"""(?P<quote>["'])(?P<quoted>[^"']+?\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif))(?P=quote)
      | (?P<bare>(?:\\\ |[^\s"'])+\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif))(?=[\s.,;:!?)]|$)""",
    re.IGNORECASE | re.VERBOSE,
)


OpenPicture = Callable[[Path], Image]


def plain_picture(path: Path) -> Image:
    """The picture in a file, whatever it remembers."""
    return Image(open_image(path))


def read_message(line: str, waiting: Iterable[Image] = (), open_picture: OpenPicture = plain_picture) -> Message:
    """A typed line as a user's message: paths of pictures in it become the pictures, after those already `waiting`.

    Raises RebusError for an empty message and for a path that cannot be opened.
    """
    parts: list[Part] = list(waiting)
    end = 0
    for found in PICTURE_PATH.finditer(line):
        path = found["quoted"] or found["bare"].replace("\\ ", " ")
        image = open_picture(Path(path).expanduser())
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
    conversation: Conversation = field(default_factory=Conversation)
    """What was said so far."""
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
                self.answer(read_message(rest, self.waiting, self.open_picture), "image")
            case "/undo":
                question = self.conversation.undo()
                self.say(f"taken back: {question.text or 'a picture'}")
            case "/back":
                self.conversation.back_to(_number_after(command, rest))
                self.say(f"behind turn {len(self.conversation.path)}; what you say next begins a branch")
            case "/branches":
                for number, end in enumerate(self.conversation.branches, 1):
                    here = "  ‹ here" if end is self.conversation.last else ""
                    self.say(f"{number}  {self.conversation.branch_title(end)}{here}")
            case "/branch":
                self.conversation.switch(_number_after(command, rest) - 1)
                self.say(f"behind turn {len(self.conversation.path)} of this branch")
            case "/new":
                self.conversation, self.waiting = Conversation(), []
                self.say("a new conversation")
            case "/save":
                self.say(f"saved as {save_conversation(self.conversation, _path_after(command, rest))}")
            case "/open":
                self.conversation, notices = open_conversation(_path_after(command, rest), self.system)
                self.waiting = []
                for notice in notices:
                    self.say(notice)
                self.say(f"a conversation of {len(self.conversation.path)} turns")
            case _ if line.startswith("/") and not PICTURE_PATH.match(line):
                raise RebusError(f"There is no command {command}. /help lists those that there are.")
            case _:
                self.answer(read_message(line, self.waiting, self.open_picture), "any")

    def attach(self, path: Path) -> None:
        """Opens a picture for the next message and shows it."""
        image = self.open_picture(path)
        self.waiting.append(image)
        assert image.pixels is not None
        self.console.print(picture(image.pixels, self.console), end="")
        self.say("now write what you want to know about it")

    def open_picture(self, path: Path) -> Image:
        """The picture in a file; one that the system drew comes with its tokens."""
        image, notice = open_drawing(path, self.system)
        if notice:
            self.say(notice)
        return image

    def answer(self, message: Message, modality: str) -> None:
        """Asks the system and shows its reply."""
        asked = self.conversation.document.add(message)
        stream = self.system.stream(asked, modality=modality, sampling=self.sampling, generator=self.generator)
        parts = show(stream, self.console, keep_in(self.folder))
        self.conversation.add(message, Message("assistant", parts))
        self.waiting = []

    def say(self, what: str) -> None:
        """Tells something that is not the model's."""
        self.console.print(Text(CONTROL.sub("", what), "dim"), soft_wrap=True)


def _number_after(command: str, rest: str) -> int:
    if not rest.strip().isdecimal():
        raise RebusError(f"{command} needs a number after it, but there is {rest.strip()!r}. For example: {command} 1")
    return int(rest)


def _path_after(command: str, rest: str) -> Path:
    with contextlib.suppress(ValueError):  # an unpaired quote is part of the name
        rest = " ".join(shlex.split(rest))
    if not rest.strip():
        raise RebusError(f"{command} needs a path after it, but there is none. For example: {command} picture.png")
    return Path(rest.strip()).expanduser()
