"""The demo: its script, its page, and that a failure leaves no half page."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import PIL.Image
import pytest
from rich.console import Console
from tests import tiny

from rebus.apps import demo
from rebus.apps.page import render
from rebus.document import Box, Document, Image, assistant, user
from rebus.errors import RebusError
from rebus.sampling import Sampling


@pytest.fixture
def examples(tmp_path):
    folder = tmp_path / "examples"
    folder.mkdir()
    for turn in demo.SCRIPT:
        if turn.shows:
            PIL.Image.new("RGB", (64, 64), "red").save(folder / turn.shows)
    return folder


def test_the_demo_writes_a_page_and_says_what_is_next(system, examples, tmp_path, capsys):
    demo.demo(examples=examples, output=tmp_path / "demo", others=())
    page = (tmp_path / "demo" / "index.html").read_text()
    drawn = sum(turn.answer != "text" for turn in demo.SCRIPT)
    shown = sum(turn.shows is not None for turn in demo.SCRIPT)
    assert page.count("<img") == drawn + shown
    assert len(list((tmp_path / "demo" / "pictures").iterdir())) == drawn
    said = capsys.readouterr().out
    assert "chat" in said and 'draw "' in said and "index.html" in said


def test_others_have_their_say_where_their_weights_are_there(system, examples, tmp_path, capsys, monkeypatch):
    assert demo.there(["lavit:tiny", "seed:mini", "nobody:mini"]) == ["lavit:tiny", "seed:mini"]
    monkeypatch.setattr(demo, "where_weights", lambda name, config: "absent")
    assert demo.there(["lavit:tiny"]) == []
    chooser, folder = tiny.system("lavit"), tmp_path / "kept"
    for number in (1, 2):
        demo.show_kept(chooser, PIL.Image.linear_gradient("L").convert("RGB"), folder, Console(file=io.StringIO()))
        assert len(list(folder.glob("kept-*.png"))) == number
    demo.show_kept(tiny.system("seed"), PIL.Image.new("RGB", (8, 8)), folder, Console(file=io.StringIO()))
    assert len(list(folder.glob("kept-*.png"))) == 2  # a system that does not choose has nothing to show


def test_another_model_says_and_draws_something_too(system, examples, tmp_path, monkeypatch, capsys):
    given = demo.load_system
    monkeypatch.setattr(
        demo,
        "load_system",
        lambda name, *a, **k: tiny.system("lavit") if name == "lavit:tiny" else given(name, *a, **k),
    )
    monkeypatch.setattr(demo, "SAMPLING", Sampling(max_new_tokens=20))
    monkeypatch.setattr(demo, "DRAWING", Sampling(max_new_tokens=20))
    monkeypatch.setattr(demo, "SCRIPT", demo.SCRIPT[:1])
    demo.demo(examples=examples, output=tmp_path / "demo", others=("lavit:tiny",))
    folder = tmp_path / "demo" / "pictures" / "lavit-tiny"
    assert {"kept-1.png", "drawing-1.png"} <= {path.name for path in folder.iterdir()}
    assert "a few replies of lavit:tiny" in (tmp_path / "demo" / "index.html").read_text()
    assert "of 16 patches are kept" in capsys.readouterr().out


def test_another_model_that_has_specialities_points_and_edits_too(system, examples, tmp_path, monkeypatch):
    class Base:
        def with_adapter(self, name):
            return asked.setdefault(name, type(system)())

    asked, turn = {}, replace(demo.SCRIPT[0], adapter="chat")
    monkeypatch.setattr(demo, "adapters", lambda name: [] if name == "seed:mini" else ["chat", "edit", "story"])
    given = demo.load_system
    monkeypatch.setattr(
        demo, "load_system", lambda name, *a, **k: Base() if name == "seed_x:mini" else given(name, *a, **k)
    )
    monkeypatch.setattr(demo, "there", list)
    monkeypatch.setattr(demo, "show_kept", lambda *a: None)
    for name in ("SCRIPT", "SHORT"):
        monkeypatch.setattr(demo, name, (turn,))
    for special in demo.SPECIAL:
        if special.shows:
            PIL.Image.new("RGB", (64, 64), "red").save(examples / special.shows)
    demo.demo(examples=examples, output=tmp_path / "demo", others=("seed_x:mini",))
    modalities = {name: [call["modality"] for call in of.calls] for name, of in asked.items()}
    assert modalities == {"chat": ["text", "text"], "edit": ["image", "image"], "story": []}


def test_the_script_shows_what_is_promised():
    answers = [turn.answer for turn in demo.SCRIPT]
    assert sum(turn.shows is not None for turn in demo.SCRIPT) >= 2
    assert answers.count("image") >= 2 and answers.count("any") >= 1
    assert any(turn.answer == "text" and turn.shows is None and not turn.anew for turn in demo.SCRIPT)


def test_a_failure_leaves_no_page(system, tmp_path):
    with pytest.raises(RebusError, match="no file"):
        demo.demo(examples=tmp_path, output=tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_the_page_is_one_valid_file():
    picture = Image(PIL.Image.new("RGB", (64, 48), "blue"))
    text = render([Document((user(picture, "<script>?"), assistant("a\nb", picture, Box(0.1, 0.2, 0.3, 0.4))))] * 2)
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert text.count("<hr>") == 1 and text.count("<ol>") == text.count("</ol>") == 2
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert 'width="192" height="144"' in text
    assert "viewport" in text and "prefers-color-scheme: dark" in text


def test_large_pictures_are_not_enlarged():
    assert 'width="300"' in render([Document((user(Image(PIL.Image.new("RGB", (300, 20)))),))])


def test_the_terminal_of_a_demo_shows_questions(system, examples, tmp_path):
    console = Console(file=io.StringIO(), width=80)
    demo.converse(system, demo.SCRIPT[:1], examples, tmp_path, console, demo.SAMPLING, demo.SAMPLING)
    assert f"you › {demo.SCRIPT[0].says}" in console.file.getvalue()


def test_specialities_answer_their_own_turns_and_what_is_pointed_at_is_drawn(system, examples, tmp_path):
    script = (
        demo.Turn("Where?", shows=demo.SCRIPT[0].shows, anew=True),
        demo.Turn("Bluer.", shows=demo.SCRIPT[0].shows, answer="image", anew=True, adapter="edit"),
        demo.Turn("Greener.", answer="image", adapter="edit"),
    )
    editor = type(system)()
    console = Console(file=io.StringIO(), width=80)
    made = demo.converse(system, script, examples, tmp_path, console, demo.SAMPLING, demo.SAMPLING, {"edit": editor})
    assert [call["modality"] for call in editor.calls] == ["image", "image"] and len(system.calls) == 1
    framed = made[0].messages[1].images[-1].pixels
    assert framed.size == (64, 64) and framed.getpixel((32, 0)) != (255, 0, 0) == framed.getpixel((32, 32))
    assert len(editor.calls[1]["document"].images) == 2  # what the first edit drew is there for the second
    assert {turn.adapter for turn in demo.SPECIAL} == {"chat", "edit"} and not demo.SPECIAL[-1].anew
