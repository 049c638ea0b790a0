"""Specialities and boxes on the command line, with a System that answers at once."""

from __future__ import annotations

import PIL.Image
import pytest

from rebus.apps import loading
from rebus.apps.boxes import COLOURS, with_boxes
from rebus.document import Box, Image


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (100, 60), (200, 200, 200)).save(path)
    return path


@pytest.fixture
def beside(monkeypatch):
    monkeypatch.setattr(loading, "adapters", lambda name, weights=None: ["chat", "edit"])


def test_every_verb_takes_the_speciality_that_it_needs(run, system, cat, tmp_path, beside, monkeypatch):
    system.detokenizer.edits = True
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    run("edit", cat, "blue", "-o", tmp_path / "a.png")
    run("see", cat, "--system", "seed_x:mini")
    run("draw", "a cat", "-o", tmp_path / "b.png")
    run("draw", "a cat", "-o", tmp_path / "b.png", "--adapter", "story")
    run("see", cat, "--adapter", "none")
    loads = [call["adapter"] for call in system.calls if "load" in call]
    assert loads == ["edit", "chat", "chat", "story", None]


def test_what_was_pointed_at_is_saved(run, system, cat, tmp_path):
    system.stream = lambda document, **settings: iter(["It is ", Box(0.5, 0.5, 0.2, 0.5), " there."])
    ran = run("see", cat, "Where is the cat?", "--boxes", tmp_path / "out.png")
    assert ran.code == 0 and str(tmp_path / "out.png") in ran.out.replace("\n", "")
    drawn = PIL.Image.open(tmp_path / "out.png")
    assert drawn.size == (100, 60)
    assert drawn.getpixel((40, 30)) == COLOURS[0] == drawn.getpixel((50, 15)) and drawn.getpixel((50, 30)) == (200,) * 3
    system.stream = lambda document, **settings: iter(["Nowhere."])
    ran = run("see", cat, "--boxes", tmp_path / "none.png")
    assert ran.code == 2 and "pointed at nothing" in ran.err and not (tmp_path / "none.png").exists()


def test_boxes_of_any_kind_are_drawn_inside_the_picture():
    picture = PIL.Image.new("RGB", (40, 30), (9, 9, 9))
    boxes = [Box(0, 0, 1, 1), Box(1, 1, 1, 1), Box(0.5, 0.5, 0, 0), Box(1, 0, 0, 1), Box(0.5, 0.5, 0.1, 0.1)]
    drawn = with_boxes(picture, boxes)
    assert drawn.size == picture.size and drawn is not picture and picture.getpixel((0, 0)) == (9, 9, 9)
    assert with_boxes(PIL.Image.new("RGB", (1, 1)), boxes).size == (1, 1)
    assert with_boxes(picture, []).tobytes() == picture.tobytes() and Image(drawn)
