"""Conversations as trees: taking back, branching, saving and opening again."""

from __future__ import annotations

import io
import json

import PIL.Image
import pytest
import torch
from rich.console import Console
from tests import tiny

from rebus.apps.chat import Chat
from rebus.apps.conversation import Conversation, conversation_from_json, conversation_json
from rebus.apps.files import open_conversation, save_conversation
from rebus.document import Image, assistant, user
from rebus.errors import RebusError
from rebus.sampling import Sampling

RED = Image(PIL.Image.new("RGB", (4, 4), (220, 30, 30)))


def said(*texts: str) -> Conversation:
    conversation = Conversation()
    for text in texts:
        conversation.add(user(text), assistant(f"re {text}"))
    return conversation


def texts(conversation: Conversation) -> list[str]:
    return [exchange.asked.text for exchange in conversation.path]


def tree() -> Conversation:
    """a ─ b ─ c, and beside them a ─ d, a ─ b ─ e ─ f; at f."""
    conversation = said("a", "b", "c")
    conversation.back_to(1)
    conversation.add(user("d"), assistant("re d"))
    conversation.switch(0)
    conversation.back_to(2)
    conversation.add(user("e", RED), assistant("re e", RED))
    conversation.add(user("f"), assistant("re f"))
    return conversation


# ------------------------------------------------------------------------------------------------ the tree


def test_what_is_added_is_the_document():
    conversation = said("a", "b")
    assert [m.text for m in conversation.document.messages] == ["a", "re a", "b", "re b"]


def test_undo_is_the_inverse_of_add():
    conversation = said("a", "b")
    assert conversation.undo().text == "b" and texts(conversation) == ["a"] and len(conversation.exchanges) == 1
    conversation.undo()
    with pytest.raises(RebusError, match="nothing can be taken back"):
        conversation.undo()


def test_a_branch_keeps_what_it_leaves():
    conversation = tree()
    assert texts(conversation) == ["a", "b", "e", "f"]
    assert [conversation.branch_title(end) for end in conversation.branches] == [
        "c (3 turns)",
        "d (2 turns)",
        "e (4 turns)",
    ]
    for number, path in enumerate((["a", "b", "c"], ["a", "d"], ["a", "b", "e", "f"])):
        conversation.switch(number)
        assert texts(conversation) == path


def test_undo_of_a_turn_that_others_follow_forgets_nothing():
    conversation = tree()
    conversation.back_to(2)
    conversation.undo()
    assert texts(conversation) == ["a"] and len(conversation.exchanges) == 6


def test_the_place_where_one_is_can_be_found_again():
    conversation = said("a", "b")
    conversation.back_to(1)
    assert [len(Conversation(conversation.exchanges, end).path) for end in conversation.branches] == [1, 2]
    conversation.back_to(0)
    assert conversation.document.messages == () and len(conversation.branches) == 1


@pytest.mark.parametrize("turns", [-1, 3])
def test_there_is_no_way_back_to_where_one_never_was(turns):
    with pytest.raises(RebusError, match="has 2 turns"):
        said("a", "b").back_to(turns)


def test_a_picture_that_is_shown_again_is_one_picture():
    conversation = said("a")
    conversation.add(user(RED, "b"), assistant(RED))
    assert conversation.images == [RED]


# ------------------------------------------------------------------------------------------------ files


def test_a_saved_tree_is_opened_as_it_was(tmp_path):
    conversation = tree()
    path = save_conversation(conversation, tmp_path / "talk.json")
    opened, notices = open_conversation(path, tiny.system("seed"))
    assert not notices and texts(opened) == texts(conversation)
    titles = {conversation.branch_title(end) for end in conversation.branches}
    assert {opened.branch_title(end) for end in opened.branches} == titles
    assert opened.images[0].pixels.getpixel((0, 0)) == (220, 30, 30)
    assert conversation_json(opened) == json.loads(path.read_text())  # and is saved as it was


def test_a_saved_conversation_goes_on_from_its_tokens(tmp_path):
    system = tiny.system("seed")
    chat = Chat(system, Console(file=io.StringIO()), tmp_path, torch.Generator(), Sampling(max_new_tokens=20))
    chat.take("/draw a boat")
    chat.take(f"/save {tmp_path / 'talk.json'}")
    opened, notices = open_conversation(tmp_path / "talk.json", system)
    (before,), (after,) = chat.conversation.images, opened.images
    assert not notices and after.generated.ids_N.tolist() == before.generated.ids_N.tolist()
    assert after.drawn.seed == before.drawn.seed
    _, notices = open_conversation(tmp_path / "talk.json", tiny.system("lavit"))
    assert len(notices) == 1 and "this model's of" in notices[0]


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    "data, says",
    [
        ([], "no list of messages"),
        ({"messages": MESSAGES[:1]}, "in turn"),
        ({"messages": MESSAGES[::-1]}, "in turn"),
        ({"messages": MESSAGES, "branches": {}}, "no list"),
        ({"messages": MESSAGES, "branches": [{"follows": 1, "messages": MESSAGES}]}, "follows no exchange"),
        ({"messages": MESSAGES, "branches": [{"follows": True, "messages": MESSAGES}]}, "follows no exchange"),
        ({"messages": MESSAGES, "branches": [{"follows": -2, "messages": MESSAGES}]}, "follows no exchange"),
        ({"messages": MESSAGES, "branches": [7]}, "follows no exchange"),
        ({"messages": [{"role": "user", "content": 5}, MESSAGES[1]]}, "no conversation"),
        (
            {"messages": [{"role": "user", "content": [{"type": "box", "box": ["x", 1, 1, 1]}]}, MESSAGES[1]]},
            "no convers",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "cat.png"}]}, MESSAGES[1]]},
            "lies elsewhere",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]}, MESSAGES[1]]},
            "not a picture",
        ),
    ],
)
def test_a_file_of_strangers_opens_nothing_but_conversations(tmp_path, data, says):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RebusError, match=says):
        open_conversation(path, tiny.system("seed"))


def test_what_is_no_json_or_too_large_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "talk.json"
    path.write_text("[" * 100_000)
    with pytest.raises(RebusError):
        open_conversation(path, None)
    monkeypatch.setattr("rebus.apps.files.MAX_FILE", 10)
    with pytest.raises(RebusError, match="more than the 10"):
        open_conversation(path, None)


def test_the_json_form_is_that_of_chats():
    data = conversation_json(said("a"))
    assert data == {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "re a"}]},
        ]
    }
    assert texts(conversation_from_json(data, lambda url: RED)) == ["a"]


# ------------------------------------------------------------------------------------------------ the terminal


def test_branches_in_the_terminal(system, tmp_path):
    chat = Chat(system, Console(file=io.StringIO(), width=80), tmp_path / "drawn", torch.Generator(), None)
    for line in ("one", "two", "/back 1", "three", "/branches", f"/save {tmp_path / 'talk.json'}", "/branch 1"):
        chat.take(line)
    assert texts(chat.conversation) == ["one", "two"]
    assert "three (2 turns)  ‹ here" in chat.console.file.getvalue()
    chat.take("/new")
    chat.take(f"/open {tmp_path / 'talk.json'}")
    assert texts(chat.conversation) == ["one", "three"] and len(chat.conversation.branches) == 2
    for line in ("/back", "/back x", "/back 9", "/branch 7"):
        with pytest.raises(RebusError):
            chat.take(line)
