"""The chat loop, and the terminal that shows it."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

from rebus.apps.chat import Chat, read_message
from rebus.apps.terminal import half_blocks, keep_in, show
from rebus.document import Image
from rebus.errors import RebusError
from rebus.images import open_image
from rebus.visual import Codes, Progress


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "my cat.png"
    PIL.Image.new("RGB", (12, 10), (200, 100, 0)).save(path)
    return path


@pytest.fixture
def chat(system, tmp_path):
    console = Console(file=io.StringIO(), width=80, highlight=False)
    return Chat(system, console, tmp_path / "drawn", torch.Generator(), sampling=None)


def lines_of(*parts: str):
    """A `read_line` that gives these lines, then the end of the input."""
    lines = iter(parts)

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return read


def said(chat: Chat, *lines: str) -> str:
    chat.run(lines_of(*lines))
    return chat.console.file.getvalue()


# ------------------------------------------------------------------------------------------------ messages


@pytest.mark.parametrize("spelling", ["'{}' what is it?", '"{}" what is it?', "{escaped} what is it?"])
def test_a_path_becomes_its_picture(cat, spelling):
    message = read_message(spelling.format(cat, escaped=str(cat).replace(" ", "\\ ")))
    assert message.images[0].pixels.size == (12, 10) and message.text == "what is it?"


def test_text_around_pictures_stays_in_order(tmp_path):
    for name in ("a.png", "b.JPG"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    message = read_message(f"Is {tmp_path}/a.png like {tmp_path}/b.JPG?")
    assert [part if isinstance(part, str) else "picture" for part in message.content] == [
        "Is",
        "picture",
        "like",
        "picture",
        "?",
    ]


def test_a_path_that_is_not_there_is_an_error():
    with pytest.raises(RebusError, match="no file absent.png"):
        read_message("what is in absent.png?")


# ------------------------------------------------------------------------------------------------ the loop


def test_a_conversation_grows_by_exchanges(chat, system, tmp_path):
    text = said(chat, "hello", "", "and now?")
    assert [message.role for message in chat.conversation.document.messages] == ["user", "assistant"] * 2
    assert "You said “hello”" in text and "‹box 0.50 0.50 0.25 1.00›" in text
    assert len(system.calls[-1]["document"].messages) == 3
    assert [file.name for file in sorted((tmp_path / "drawn").iterdir())] == ["image-001.png", "image-002.png"]


def test_image_waits_for_the_next_message(chat, system, cat):
    said(chat, f"/image {cat}", "what is it?", "and?")
    questions = [call["document"].messages[-1] for call in system.calls]
    assert [len(question.images) for question in questions] == [1, 0]


def test_draw_forces_a_picture(chat, system):
    said(chat, "/draw a boat")
    assert system.calls[0]["modality"] == "image" and chat.conversation.document.messages[0].text == "a boat"
    assert isinstance(chat.conversation.document.messages[1].content[0], Image)


def test_undo_and_new(chat):
    text = said(chat, "one", "two", "/undo")
    assert len(chat.conversation.document.messages) == 2 and "taken back: two" in text
    said(chat, "/new")
    assert chat.conversation.document.messages == ()
    assert "nothing can be taken back" in said(chat, "/undo")


@pytest.mark.parametrize("name", ["talk.json", "talk.html"])
def test_save(chat, tmp_path, name):
    said(chat, "hello <b>", f"/save {tmp_path / name}")
    text = (tmp_path / name).read_text()
    assert "data:image/png;base64," in text
    if name.endswith("json"):
        assert json.loads(text)["messages"][0]["content"] == [{"type": "text", "text": "hello <b>"}]
    else:
        assert "hello &lt;b&gt;" in text and "<b>" not in text


@pytest.mark.parametrize(
    "line", ["/save", "/save talk.doc", "/image", "/image absent.png", "/draw", "/fly", "absent.png"]
)
def test_errors_do_not_end_the_chat(chat, line):
    said(chat, line, "hello")
    assert len(chat.conversation.document.messages) == 2


def test_quit_and_help(chat, system):
    assert "/undo" in said(chat, "/help", "/quit", "hello")
    assert not system.calls


def test_ctrl_c_stops_the_reply_only(chat, system):
    system.interrupt = True
    assert "stopped" in said(chat, "hello")
    assert chat.conversation.document.messages == () and system.closed == 1


# ------------------------------------------------------------------------------------------------ the terminal


def test_half_blocks_keep_colours_and_shape():
    image = PIL.Image.new("RGB", (40, 20), (10, 200, 30))
    text = half_blocks(image, 20)
    assert [len(line) for line in text.plain.splitlines()] == [20] * 5
    style = text.spans[0].style
    assert style.color.triplet == style.bgcolor.triplet == (10, 200, 30)


@pytest.mark.parametrize("size", [(1, 1), (1000, 1), (1, 1000), (64, 64), (3, 5)])
def test_half_blocks_fit(size):
    text = half_blocks(PIL.Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)), 30, 12)
    lines = text.plain.splitlines()
    assert 1 <= len(lines) <= 12 and 1 <= len(lines[0]) <= 30


def test_pictures_are_shown_in_colour_terminals_only(tmp_path):
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, color_system="truecolor", width=80)
        show([Progress(1, 2), Image(PIL.Image.new("RGB", (8, 8)))], console, keep_in(tmp_path))
        assert ("▀" in console.file.getvalue()) == terminal


def test_text_is_shown_as_it_is(tmp_path):
    console = Console(file=io.StringIO(), width=20)
    parts = show(["  one [red]", " two " * 10, "\nthree"], console, keep_in(tmp_path))
    assert parts == ("  one [red]" + " two " * 10 + "\nthree",)
    assert console.file.getvalue() == "one [red]" + " two " * 10 + "\nthree\n"


def test_a_model_cannot_command_the_terminal(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    parts = show(["a\x1b[2Jb\x07\r\tc\x9bd"], console, keep_in(tmp_path))
    assert console.file.getvalue().replace("\x1b[0m", "").split() == ["a[2Jb", "cd"]
    assert parts == ("a\x1b[2Jb\x07\r\tc\x9bd",)


def test_an_image_without_pixels_is_said(tmp_path):
    console = Console(file=io.StringIO(), width=80)
    show([Image(generated=Codes(torch.arange(32), "x"))], console, keep_in(tmp_path))
    assert "32 codes, not drawn" in console.file.getvalue()
    assert not list(tmp_path.iterdir())


def test_keep_counts_on(tmp_path):
    keep = keep_in(tmp_path)
    image = Image(PIL.Image.new("RGB", (4, 4)))
    keep(image).rename(tmp_path / "image-041.png")
    assert keep(image).name == "image-042.png" and open_image(tmp_path / "image-042.png").size == (4, 4)
